const part = (kind, text = "", of = "div") => {
  const made = document.createElement(of);
  made.className = kind;
  made.textContent = text;
  return made;
};
const button = ({ icon, text, help }, action, id, name) => {
  const made = part("", "", "button");
  const sign = part("icon", icon, "span");
  sign.ariaHidden = "true";
  made.append(sign, part("", text, "span"));
  made.title = help;
  made.ariaLabel = text + ": " + name;
  Object.assign(made.dataset, { action, id });
  return made;
};
const tile = ({ id, name, label, score, picture }, words) => {
  const made = part("tile");
  made.role = "listitem";
  let image = part("none", words.out_of_reach);
  if (picture) {
    image = part("", "", "img");
    image.src = "data:image/jpeg;base64," + picture;
    image.alt = name;
    Object.assign(image.dataset, { action: "open", id });
  }
  made.append(image);
  if (score !== null) {
    const line = part("score", score.toFixed(2));
    const bar = part("bar");
    bar.append(part(""));
    bar.firstChild.style.width = 100 * Math.min(1, Math.max(0, score)) + "%";
    line.append(bar);
    made.append(line);
  }
  for (const text of [label, name]) {
    if (!text) continue;
    made.append(part("name", text));
    made.lastChild.title = text;
  }
  const buttons = part("buttons");
  for (const action of ["open", "similar"]) buttons.append(button(words[action], action, id, name));
  made.append(buttons);
  return made;
};
export default function ({ data, parentElement, setTriggerValue }) {
  const grid = parentElement.querySelector(".grid");
  grid.onclick = ({ target }) => {
    const { action, id } = target.closest("[data-action]")?.dataset ?? {};
    if (action) setTriggerValue(action, Number(id));
  };
  const given = JSON.stringify(data);
  if (grid.given === given) return;
  grid.given = given;
  if (data.of && data.of !== grid.of) document.querySelector("[data-testid=stMain]")?.scrollTo({ top: 0 });
  grid.of = data.of;
  grid.style.setProperty("--tile", data.least + "px");
  grid.replaceChildren(...data.tiles.map((each) => tile(each, data.words)));
}
