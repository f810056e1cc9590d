"""Whether the service runs and can answer. These routes need no token."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from .._problems import problem_responses
from .._state import State

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The state of the service."""

    status: str


@router.get("/healthz")
def is_alive() -> Health:
    """Answer as long as the process runs."""
    return Health(status="ok")


@router.get("/readyz", responses=problem_responses(503))
def is_ready(state: State) -> Health:
    """Answer if all collections can be opened."""
    for name in state.collections.names:
        state.collections.get(name)
    return Health(status="ok")
