"""Whether the service runs and can answer, and its metrics. The first two routes need no token."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel

from .._metrics import MEDIA_TYPE, metrics_text
from .._problems import ProblemError, problem_responses
from .._state import State

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The state of the service."""

    status: str


@router.get("/healthz")
async def is_alive() -> Health:
    """Answer as long as the process runs."""
    return Health(status="ok")


@router.get("/readyz", responses=problem_responses(503))
def is_ready(state: State) -> Health:
    """Answer if all collections can be searched; this is tried at most once a second."""
    if failing := state.readiness.failing(state.collections):
        names = ", ".join(failing)
        raise ProblemError(503, "collection not available", f"These collections cannot be searched now: {names}.")
    return Health(status="ok")


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
)
def metrics(state: State) -> Response:
    """Return the metrics of the service for Prometheus."""
    return Response(metrics_text(state), media_type=MEDIA_TYPE)
