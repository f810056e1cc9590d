const element = (className, text = "", tag = "div") => {
  const created = document.createElement(tag);
  created.className = className;
  created.textContent = text;
  return created;
};
const button = ({ icon, text, help }, action, id, name) => {
  const created = element("", "", "button");
  const iconElement = element("icon", icon, "span");
  iconElement.ariaHidden = "true";
  created.append(iconElement, element("", text, "span"));
  created.title = help;
  created.ariaLabel = text + ": " + name;
  Object.assign(created.dataset, { action, id });
  return created;
};
const tileElement = ({ id, name, label, score, score_text, image }, words) => {
  const tile = element("tile");
  tile.role = "listitem";
  let picture = element("none", words.notAvailable);
  if (image) {
    picture = element("", "", "img");
    picture.src = "data:image/jpeg;base64," + image;
    picture.alt = name;
    Object.assign(picture.dataset, { action: "open", id });
  }
  tile.append(picture);
  if (score !== null) {
    const line = element("score", score_text);
    const bar = element("bar");
    bar.append(element(""));
    bar.firstChild.style.width = 100 * Math.min(1, Math.max(0, score)) + "%";
    line.append(bar);
    tile.append(line);
  }
  for (const text of [label, name]) {
    if (!text) continue;
    tile.append(element("name", text));
    tile.lastChild.title = text;
  }
  const buttons = element("buttons");
  for (const action of ["open", "similar"]) buttons.append(button(words[action], action, id, name));
  tile.append(buttons);
  return tile;
};
export default function ({ data, parentElement, setTriggerValue }) {
  const grid = parentElement.querySelector(".grid");
  grid.onclick = ({ target }) => {
    const { action, id } = target.closest("[data-action]")?.dataset ?? {};
    if (action) setTriggerValue(action, Number(id));
  };
  const serialized = JSON.stringify(data);
  if (grid.shownData === serialized) return;
  grid.shownData = serialized;
  if (data.queryKey && data.queryKey !== grid.queryKey) {
    document.querySelector("[data-testid=stMain]")?.scrollTo({ top: 0 });
  }
  grid.queryKey = data.queryKey;
  grid.style.setProperty("--tile", data.minTileWidth + "px");
  grid.replaceChildren(...data.tiles.map((tile) => tileElement(tile, data.words)));
}
