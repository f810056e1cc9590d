"""What the pointer is at on the map: its picture and name beside the pointer, and a click that opens it.

Streamlit tells of points that were chosen, not of the one under the pointer, and of no click while a lasso is at hand.
So a script listens to the chart of Plotly. It asks for one item at a time, in a fragment, so that neither the page nor
the chart is drawn again, and keeps what it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import streamlit as st

_KEY, _SEEN, _OPENED = "pointer", "pointer_seen", "pointer_opened"

_HTML = '<div class="at-pointer" popover="manual" role="tooltip"><img alt=""><div></div><div></div></div>'
# The outline of what was chosen would keep the pointer from the points in it.
_CSS = """
.js-plotly-plot .selectionlayer path { pointer-events: none !important; }
.at-pointer { position: fixed; inset: auto; margin: 0; width: 11rem; padding: .5rem; box-sizing: border-box;
              pointer-events: none; font-size: .8rem; line-height: 1.35; color: var(--st-text-color);
              background: var(--st-background-color); border: 1px solid var(--st-border-color);
              border-radius: var(--st-base-radius); box-shadow: 0 4px 16px rgba(0, 0, 0, .25); }
.at-pointer img { width: 100%; aspect-ratio: 1; margin-bottom: .35rem;
                  border-radius: calc(var(--st-base-radius) / 2); }
.at-pointer img:not([src]), .at-pointer div:empty { display: none; }
.at-pointer div { overflow: hidden; text-overflow: ellipsis; white-space: pre; }
.at-pointer div:last-child { opacity: .7; }
"""
_JS = """
const REST = 60;  // milliseconds that the pointer rests on a point before its item is asked for
const MOST = 500;  // items that are kept

const start = (card) => {
  const self = { known: new Map(), at: null, drawn: null };
  const [picture, name, label] = card.children;
  let timer, x = 0, y = 0;
  const raise = (shown) => { if (card.isConnected) card.togglePopover(shown); };
  const leave = () => { clearTimeout(timer); self.at = null; raise(false); };
  const place_of = (event) => event.points?.[0]?.customdata;
  self.leave = leave;
  self.show = () => {
    const seen = self.known.get(self.at);
    if (!seen) { raise(false); return; }
    if (seen.picture) picture.src = "data:image/jpeg;base64," + seen.picture; else picture.removeAttribute("src");
    name.textContent = seen.name;
    label.textContent = seen.label;
    raise(true);
    const { width, height } = card.getBoundingClientRect();
    const left = x + 16 + width > innerWidth ? x - 16 - width : x + 16;
    card.style.left = Math.max(4, left) + "px";
    card.style.top = Math.max(4, Math.min(y + 16, innerHeight - height - 8)) + "px";
  };
  const listeners = {
    plotly_hover: (event) => {
      const place = place_of(event);
      if (typeof place !== "number" || matchMedia("(hover: none)").matches) return;
      clearTimeout(timer);
      self.at = place;
      ({ clientX: x, clientY: y } = event.event);
      self.show();
      if (!self.known.has(place)) timer = setTimeout(() => self.send("at", { drawn: self.drawn, place }), REST);
    },
    plotly_unhover: leave,
    plotly_click: (event) => {
      leave();
      const place = place_of(event);
      if (typeof place === "number") self.send("clicked", { drawn: self.drawn, place });
    },
  };
  const listen = (wanted) => {
    for (const [name, listener] of Object.entries(listeners)) {
      self.chart?.removeListener?.(name, listener);
      wanted?.on(name, listener);
    }
    self.chart = wanted;
    self.on = wanted?.on;
  };
  // When the pointer is on the chart, as that may have been drawn anew meanwhile: it then has another `on`.
  const come = ({ target }) => {
    const chart = target.closest?.("." + self.within + " .js-plotly-plot");
    if (chart?.on && (chart !== self.chart || chart.on !== self.on)) listen(chart);
  };
  const heard = { pointerover: come, pointermove: come, pointerdown: leave, scroll: leave };
  for (const [name, listener] of Object.entries(heard)) document.addEventListener(name, listener, true);
  self.end = () => {
    leave();
    listen(null);
    for (const [name, listener] of Object.entries(heard)) document.removeEventListener(name, listener, true);
  };
  return self;
};

export default function ({ data, parentElement, setTriggerValue }) {
  const card = parentElement.querySelector(".at-pointer");
  const self = card.self ??= start(card);
  self.send = setTriggerValue;
  self.within = data.within;
  if (self.drawn !== data.drawn) {
    self.leave();
    self.known.clear();
    self.drawn = data.drawn;
  }
  if (data.seen) {
    if (self.known.size >= MOST) self.known.delete(self.known.keys().next().value);
    self.known.set(data.seen.place, data.seen);
    self.show();
  }
  return () => { self.end(); delete card.self; };
}
"""


@cache
def _component() -> Any:
    # The style is also for the chart, which is outside.
    return st.components.v2.component("pixmatcher_pointer", html=_HTML, css=_CSS, js=_JS, isolate_styles=False)


@st.fragment
def follow_pointer(within: str, drawn: str, count: int, describe: Callable[[int], dict[str, Any] | None]) -> None:
    """Show what is under the pointer on the chart of Plotly in the container of key `within`.

    The custom data of its points are positions on the map `drawn`, which has `count` of them. `describe` tells the
    `name`, `label` and `picture` (JPEG in base64, or None) of one, or None where it is gone.
    """

    def seen() -> None:
        st.session_state[_SEEN] = place_on_map(st.session_state[_KEY].at, drawn, count)

    def clicked() -> None:
        st.session_state[_OPENED] = place_on_map(st.session_state[_KEY].clicked, drawn, count)

    place = st.session_state.pop(_SEEN, None)
    told = None if place is None else describe(place)
    _component()(
        key=_KEY,
        data={"within": f"st-key-{within}", "drawn": drawn, "seen": told and {"place": place, **told}},
        on_at_change=seen,
        on_clicked_change=clicked,
    )
    if st.session_state.get(_OPENED) is not None:
        st.rerun()


def opened_place() -> int | None:
    """The position on the map that the visitor has just clicked; it is told once."""
    place: int | None = st.session_state.pop(_OPENED, None)
    return place


def place_on_map(given: object, drawn: str, count: int) -> int | None:
    """A position on the map `drawn` as a browser sent it, None if it is none, or one of another map."""
    if not isinstance(given, dict) or given.get("drawn") != drawn:
        return None
    place = given.get("place")
    return place if type(place) is int and 0 <= place < count else None
