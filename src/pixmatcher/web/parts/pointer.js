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
