"use strict";
const read = (id) => { const found = document.getElementById(id); return found && JSON.parse(found.textContent); };
const points = read("points"), sprite = read("sprite");
const map = document.getElementById("map"), path = document.getElementById("path");
const circles = [...map.querySelectorAll("circle")];
const place = circles.map((circle) => [circle.cx.baseVal.value, circle.cy.baseVal.value]);
const whole = { x: 0, y: 0, width: map.viewBox.baseVal.width, height: map.viewBox.baseVal.height };
const rowsOf = new Map();
points.forEach((point, row) => rowsOf.set(point.video, [...(rowsOf.get(point.video) ?? []), row]));
let view = { ...whole }, shown = -1, kept = false, dragged = null;

// The radius of a dot stays about 5 pixels of the screen.
const apply = () => {
  map.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
  const width = map.getBoundingClientRect().width || 800;
  map.style.setProperty("--r", `${((circles.length > 1500 ? 3.2 : 4.5) * view.width) / width}px`);
  map.classList.toggle("zoomed", view.width < whole.width);
};
const zoom = (factor, [x, y] = [view.x + view.width / 2, view.y + view.height / 2]) => {
  const width = Math.min(whole.width, Math.max(whole.width / 64, view.width * factor)), ratio = width / view.width;
  view = { x: x - (x - view.x) * ratio, y: y - (y - view.y) * ratio, width, height: view.height * ratio };
  if (width === whole.width) view = { ...whole };
  apply();
};
const at = (event) => {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
  return [point.x, point.y];
};
const isVisible = (row) => !circles[row].classList.contains("off");
const nearest = ([x, y]) => {
  let best = -1, limit = (18 * view.width) / map.getBoundingClientRect().width;
  place.forEach(([px, py], row) => {
    const distance = Math.hypot(px - x, py - y);
    if (distance < limit && isVisible(row)) [best, limit] = [row, distance];
  });
  return best;
};
const line = (text, className) => {
  const found = document.createElement("p");
  found.textContent = text;
  if (className) found.className = className;
  return found;
};
const show = (row) => {
  if (row < 0 || row === shown) return;
  if (shown >= 0) circles[shown].classList.remove("on");
  shown = row;
  circles[row].classList.add("on");
  const point = points[row], together = rowsOf.get(point.video).filter(isVisible);
  path.setAttribute("d", together.length > 1 ? `M${together.map((each) => place[each].join(" ")).join("L")}` : "");
  const details = [point.label, point.time].filter(Boolean).map((text) => line(text));
  document.getElementById("text").replaceChildren(line(point.video), ...details, line(point.key === point.video ? "" : point.key, "quiet"));
  const picture = document.getElementById("thumbnail");
  if (!picture) return;
  const percent = (number, count) => (count > 1 ? (100 * number) / (count - 1) : 0);
  picture.hidden = false;
  picture.style.backgroundPosition = `${percent(row % sprite.columns, sprite.columns)}% ${percent(Math.floor(row / sprite.columns), sprite.lines)}%`;
};
map.addEventListener("pointermove", (event) => {
  if (dragged) {
    const [x, y] = at(event);
    view.x += dragged[0] - x;
    view.y += dragged[1] - y;
    apply();
  } else if (!kept) show(nearest(at(event)));
});
map.addEventListener("pointerdown", (event) => {
  const row = nearest(at(event));
  if (row >= 0) { kept = !(kept && row === shown); show(row); return; }
  kept = false;
  if (view.width < whole.width) { dragged = at(event); map.setPointerCapture(event.pointerId); }
});
for (const end of ["pointerup", "pointercancel"]) map.addEventListener(end, () => { dragged = null; });
map.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && view.width === whole.width) return;  // the page scrolls
  event.preventDefault();
  zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, at(event));
}, { passive: false });
map.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  if (!points.some((_, row) => isVisible(row))) return;
  let row = shown;
  do row = (row + step + points.length) % points.length; while (!isVisible(row) && row !== shown);
  kept = true;
  show(row);
});
document.getElementById("in").addEventListener("click", () => zoom(1 / 1.6, shown >= 0 ? place[shown] : undefined));
document.getElementById("out").addEventListener("click", () => zoom(1.6));
document.getElementById("reset").addEventListener("click", () => { view = { ...whole }; apply(); });
document.querySelectorAll(".keys button").forEach((button, group) => button.addEventListener("click", () => {
  const isOn = button.getAttribute("aria-pressed") === "false";
  button.setAttribute("aria-pressed", String(isOn));
  points.forEach((point, row) => { if (point.group === group) circles[row].classList.toggle("off", !isOn); });
}));
addEventListener("resize", apply);
apply();
