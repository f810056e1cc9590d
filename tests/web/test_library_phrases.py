"""Every reason of a failure has a French translation. The reasons are collected from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st

import pixmatcher
from pixmatcher.encoders import manage as models
from pixmatcher.errors import (
    CollectionLockedError,
    CollectionUpgradedError,
    EncoderError,
    FetchError,
    InvalidImageError,
    OutdatedCollectionError,
    PixMatcherError,
    StorageError,
)
from pixmatcher.images import _formats
from pixmatcher.web import _texts
from pixmatcher.web._texts.library_phrases import FRENCH_PHRASES

PACKAGE = Path(pixmatcher.__file__).parent
POSITION_OF_REASON = {"InvalidImageError": 0, "FetchError": 1, "Unusable": 1, "Failure": 1}
FROM_OTHER_ERRORS = {
    "found.reason",
    "found['reason']",
    "values['reason']",
    "row.reason",
    "u.reason",
    "damage.reason",
    "error.reason",
    "host.given_up.reason",
    "*fault",
    "*rest",
    "of_type(row['reason'], str)",  # of a service
}
"""Reasons that come from another error."""


def reasons_in(tree: ast.Module) -> Iterator[str]:
    """Return the reasons of all failures that the code of a module creates."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for function in functions.values():
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in POSITION_OF_REASON:
                place = POSITION_OF_REASON[call.func.id]
                given = [word.value for word in call.keywords if word.arg == "reason"] or call.args[place : place + 1]
                for reason in given:
                    yield from constants_of(reason, function, functions)


def constants_of(reason: ast.expr, function: ast.FunctionDef, functions: dict[str, ast.FunctionDef]) -> Iterator[str]:
    if isinstance(reason, ast.Constant):
        yield str(reason.value)
    elif isinstance(reason, ast.IfExp):
        yield from constants_of(reason.body, function, functions)
        yield from constants_of(reason.orelse, function, functions)
    elif isinstance(reason, ast.JoinedStr):
        assert ast.unparse(reason) == "f'HTTP {status}'"
    elif isinstance(reason, ast.Starred) and isinstance(reason.value, ast.Call):
        called = functions.get(ast.unparse(reason.value.func))
        for node in ast.walk(called) if called else ():
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
                yield from constants_of(node.value.elts[0], called or function, functions)
    elif isinstance(reason, ast.Name):
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                target, value = node.targets[0], node.value
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    target, value = target.elts[0], value.elts[0]
                if isinstance(target, ast.Name) and target.id == reason.id:
                    yield from constants_of(value, function, functions)
    else:
        assert ast.unparse(reason) in FROM_OTHER_ERRORS, ast.unparse(reason)


def test_every_reason_has_a_french_translation() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if "evaluation" not in path.parts]  # which the app does not show
    found = {reason for path in modules for reason in reasons_in(ast.parse(path.read_text()))}
    found |= {reason for _, reason, _ in _formats.UNSUPPORTED_SIGNATURES}
    assert {"too many pixels", "damaged", "permission denied", "truncated", "private address", "cut short"} <= found
    assert found - set(FRENCH_PHRASES) == set()


@pytest.fixture
def french(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(st.session_state, "language", "fr")


@pytest.mark.usefixtures("french")
def test_states_of_encoders_are_french() -> None:
    states = {model.state for model in models.list_models()} | {"ready, int8", "to be downloaded"}
    assert not [state for state in states if _texts.translate_phrase(state) == state]
    assert _texts.translate_phrase("ready, int8") == "prêt, int8"


@pytest.mark.usefixtures("french")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            InvalidImageError("too many pixels", "9 x 9"),
            "Cette image ne peut pas être utilisée (trop de pixels : 9 x 9)",
        ),
        (FetchError("x. Allow it.", "private address", "::1; --allow-private-hosts allows it"), "refusée : ::1"),
        (CollectionLockedError("Process 1 writes."), "réessayez quand il aura terminé. (Process 1 writes.)"),
        (StorageError("Full."), "libérez de l'espace et recommencez. (Full.)"),
        (EncoderError("No torch."), "Cet encodeur n'est pas utilisable ici. (No torch.)"),
        (OutdatedCollectionError("Run it."), "mettez-la à niveau avec la commande indiquée ici. (Run it.)"),
        (CollectionUpgradedError("Open it again."), "vient d'être mise à niveau : rechargez la page."),
        (PixMatcherError("<b>Odd</b>."), "L'opération a échoué. (<b>Odd</b>.)"),
    ],
)
def test_errors_are_french_with_english_details(error: PixMatcherError, said: str) -> None:
    message = _texts.error_text(error)
    assert said in message.replace("\\", "").replace("\N{WORD JOINER}", "")
    assert "<b>" not in message
