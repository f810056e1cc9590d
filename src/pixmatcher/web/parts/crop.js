const WHOLE = [0, 0, 1, 1], STEP = 0.02;
const ARROWS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
const clamp = (value, least, most) => Math.min(most, Math.max(least, value));
const same = (one, other) => one.every((side, i) => Math.abs(side - other[i]) < 1e-6);
const moved = ([left, top, right, bottom], [x, y]) => {
  const [dx, dy] = [clamp(x, -left, 1 - right), clamp(y, -top, 1 - bottom)];
  return [left + dx, top + dy, right + dx, bottom + dy];
};
const between = ([x, y], [u, v]) => [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)];

export default function ({ data, parentElement, setTriggerValue }) {
  const frame = parentElement.querySelector(".frame");
  frame.tell = setTriggerValue;
  if (frame.digest === data.digest) {
    // What comes back is what was drawn here. Perhaps another frame is being drawn by now: it stays.
    const echo = frame.told.findIndex((each) => same(each, data.box));
    if (echo >= 0 || same(frame.given, data.box)) {
      frame.told.splice(0, echo + 1);
      frame.given = data.box;
      return;
    }
  }
  [frame.digest, frame.given, frame.told] = [data.digest, data.box, []];
  const picture = frame.querySelector("img");
  picture.src = "data:image/jpeg;base64," + data.picture;
  picture.alt = data.words.picture;
  frame.setAttribute("aria-label", data.words.frame);
  parentElement.querySelector("#keys").textContent = data.words.keys;

  let asked = data.box;  // what was searched for; `box` is what is shown
  let box;
  const show = (sides) => {
    box = sides;
    ["left", "top", "right", "bottom"].forEach((side, i) => frame.style.setProperty("--" + side, 100 * box[i] + "%"));
    frame.classList.toggle("part", !same(box, WHOLE));
  };
  const ask = () => {
    if (same(box, asked)) return;
    asked = box;
    frame.told.push(box);
    frame.tell("box", box);
  };
  show(asked);

  // The mouse or a finger: `follow` makes the frame of where it is.
  let follow = null;
  const place = (event) => {
    const area = picture.getBoundingClientRect();
    const [x, y] = [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
    return [clamp(x, 0, 1), clamp(y, 0, 1)];
  };
  frame.onpointerdown = (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    const [from, before, at] = [place(event), box, event.target.classList];
    if (event.target.tagName === "I") {
      const fixed = [before[at.contains("left") ? 2 : 0], before[at.contains("top") ? 3 : 1]];
      follow = (to) => between(fixed, to);
    } else if (at.contains("box") && !same(before, WHOLE)) {
      follow = (to) => moved(before, [to[0] - from[0], to[1] - from[1]]);
    } else {
      follow = (to) => between(from, to);
    }
    frame.setPointerCapture(event.pointerId);
  };
  frame.onpointermove = (event) => { if (follow) show(follow(place(event))); };
  frame.onpointerup = (event) => {
    if (!follow) return;
    const drawn = follow(place(event));
    follow = null;
    const slipped = drawn[2] - drawn[0] < data.least || drawn[3] - drawn[1] < data.least;
    show(slipped ? asked : drawn);
    ask();
  };
  frame.onpointercancel = () => { follow = null; show(asked); };

  frame.onkeydown = (event) => {
    const step = ARROWS[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (step && event.shiftKey) {
      const [right, bottom] = [box[2] + step[0], box[3] + step[1]];
      show([box[0], box[1], clamp(right, box[0] + 2 * data.least, 1), clamp(bottom, box[1] + 2 * data.least, 1)]);
    } else if (step) {
      show(moved(box, step));
    } else if (event.key === "Enter") {
      ask();
    } else if (event.key === "Escape") {
      show(WHOLE);
      ask();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };
  frame.onblur = () => { if (!follow) show(asked); };
}
