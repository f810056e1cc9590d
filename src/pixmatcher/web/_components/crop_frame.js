const WHOLE = [0, 0, 1, 1], STEP = 0.02;
const ARROWS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
const clamp = (value, min, max) => Math.min(max, Math.max(min, value));
const equal = (one, other) => one.every((side, i) => Math.abs(side - other[i]) < 1e-6);
const moved = ([left, top, right, bottom], [x, y]) => {
  const [dx, dy] = [clamp(x, -left, 1 - right), clamp(y, -top, 1 - bottom)];
  return [left + dx, top + dy, right + dx, bottom + dy];
};
const between = ([x, y], [u, v]) => [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)];

export default function ({ data, parentElement, setTriggerValue }) {
  const frame = parentElement.querySelector(".frame");
  frame.send = setTriggerValue;
  if (frame.digest === data.digest) {
    // The server returns a box that was sent from here. The visitor may be drawing the next one: keep that.
    const echo = frame.sentBoxes.findIndex((sent) => equal(sent, data.box));
    if (echo >= 0 || equal(frame.serverBox, data.box)) {
      frame.sentBoxes.splice(0, echo + 1);
      frame.serverBox = data.box;
      return;
    }
  }
  [frame.digest, frame.serverBox, frame.sentBoxes] = [data.digest, data.box, []];
  const image = frame.querySelector("img");
  image.src = "data:image/jpeg;base64," + data.image;
  image.alt = data.words.image;
  frame.setAttribute("aria-label", data.words.frame);
  parentElement.querySelector("#keys").textContent = data.words.keys;

  let searched = data.box;  // the box of the last search; `box` is the one on the screen
  let box;
  const show = (sides) => {
    box = sides;
    ["left", "top", "right", "bottom"].forEach((side, i) => frame.style.setProperty("--" + side, 100 * box[i] + "%"));
    frame.classList.toggle("part", !equal(box, WHOLE));
  };
  const search = () => {
    if (equal(box, searched)) return;
    searched = box;
    frame.sentBoxes.push(box);
    frame.send("box", box);
  };
  show(searched);

  // While a button or finger is down, `boxAt` computes the box from the point of the pointer.
  let boxAt = null;
  const pointOf = (event) => {
    const area = image.getBoundingClientRect();
    const [x, y] = [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
    return [clamp(x, 0, 1), clamp(y, 0, 1)];
  };
  frame.onpointerdown = (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    const [start, before, classes] = [pointOf(event), box, event.target.classList];
    if (event.target.tagName === "I") {
      const opposite = [before[classes.contains("left") ? 2 : 0], before[classes.contains("top") ? 3 : 1]];
      boxAt = (point) => between(opposite, point);
    } else if (classes.contains("box") && !equal(before, WHOLE)) {
      boxAt = (point) => moved(before, [point[0] - start[0], point[1] - start[1]]);
    } else {
      boxAt = (point) => between(start, point);
    }
    frame.setPointerCapture(event.pointerId);
  };
  frame.onpointermove = (event) => { if (boxAt) show(boxAt(pointOf(event))); };
  frame.onpointerup = (event) => {
    if (!boxAt) return;
    const drawn = boxAt(pointOf(event));
    boxAt = null;
    const tooSmall = drawn[2] - drawn[0] < data.minSide || drawn[3] - drawn[1] < data.minSide;
    show(tooSmall ? searched : drawn);
    search();
  };
  frame.onpointercancel = () => { boxAt = null; show(searched); };

  frame.onkeydown = (event) => {
    const step = ARROWS[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (step && event.shiftKey) {
      const [right, bottom] = [box[2] + step[0], box[3] + step[1]];
      show([box[0], box[1], clamp(right, box[0] + 2 * data.minSide, 1), clamp(bottom, box[1] + 2 * data.minSide, 1)]);
    } else if (step) {
      show(moved(box, step));
    } else if (event.key === "Enter") {
      search();
    } else if (event.key === "Escape") {
      show(WHOLE);
      search();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };
  frame.onblur = () => { if (!boxAt) show(searched); };
}
