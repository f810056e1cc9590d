const DELAY = 60;  // milliseconds that the pointer stays on a point before its item is requested
const MAX_ITEMS = 500;  // items that are kept

const start = (card) => {
  const self = { items: new Map(), position: null, mapKey: null };
  const [image, name, label] = card.children;
  let timer, x = 0, y = 0;
  const toggle = (shown) => { if (card.isConnected) card.togglePopover(shown); };
  const leave = () => { clearTimeout(timer); self.position = null; toggle(false); };
  const positionOf = (event) => event.points?.[0]?.customdata;
  self.leave = leave;
  self.show = () => {
    const item = self.items.get(self.position);
    if (!item) { toggle(false); return; }
    if (item.image) image.src = "data:image/jpeg;base64," + item.image; else image.removeAttribute("src");
    name.textContent = item.name;
    label.textContent = item.label;
    toggle(true);
    const { width, height } = card.getBoundingClientRect();
    const left = x + 16 + width > innerWidth ? x - 16 - width : x + 16;
    card.style.left = Math.max(4, left) + "px";
    card.style.top = Math.max(4, Math.min(y + 16, innerHeight - height - 8)) + "px";
  };
  const chartListeners = {
    plotly_hover: (event) => {
      const position = positionOf(event);
      if (typeof position !== "number" || matchMedia("(hover: none)").matches) return;
      clearTimeout(timer);
      self.position = position;
      ({ clientX: x, clientY: y } = event.event);
      self.show();
      if (self.items.has(position)) return;
      timer = setTimeout(() => self.send("hover", { mapKey: self.mapKey, position }), DELAY);
    },
    plotly_unhover: leave,
    plotly_click: (event) => {
      leave();
      const position = positionOf(event);
      if (typeof position === "number") self.send("click", { mapKey: self.mapKey, position });
    },
  };
  const listenTo = (chart) => {
    for (const [name, listener] of Object.entries(chartListeners)) {
      self.chart?.removeListener?.(name, listener);
      chart?.on(name, listener);
    }
    self.chart = chart;
    self.on = chart?.on;
  };
  // Finds the chart when the pointer is on it. A chart that was drawn again has another function `on`.
  const findChart = ({ target }) => {
    const chart = target.closest?.("." + self.container + " .js-plotly-plot");
    if (chart?.on && (chart !== self.chart || chart.on !== self.on)) listenTo(chart);
  };
  const listeners = { pointerover: findChart, pointermove: findChart, pointerdown: leave, scroll: leave };
  for (const [name, listener] of Object.entries(listeners)) document.addEventListener(name, listener, true);
  self.stop = () => {
    leave();
    listenTo(null);
    for (const [name, listener] of Object.entries(listeners)) document.removeEventListener(name, listener, true);
  };
  return self;
};

export default function ({ data, parentElement, setTriggerValue }) {
  const card = parentElement.querySelector(".at-pointer");
  const self = card.self ??= start(card);
  self.send = setTriggerValue;
  self.container = data.container;
  if (self.mapKey !== data.mapKey) {
    self.leave();
    self.items.clear();
    self.mapKey = data.mapKey;
  }
  if (data.item) {
    if (self.items.size >= MAX_ITEMS) self.items.delete(self.items.keys().next().value);
    self.items.set(data.item.position, data.item);
    self.show();
  }
  return () => { self.stop(); delete card.self; };
}
