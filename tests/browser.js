// What test_browser.py asks a page of the book, run in the browser. Each function answers with plain data.
const name = (element) => {
  const cell = element.closest("div.cell");
  const place = cell ? `cell ${[...document.querySelectorAll("div.cell")].indexOf(cell) + 1}: ` : "";
  const kind = element.tagName.toLowerCase() + (element.classList.length ? "." + [...element.classList].join(".") : "");
  return `${place}${kind} ${JSON.stringify(element.textContent.trim().replace(/\s+/g, " ").slice(0, 50))}`;
};
const shown = (element) => element.checkVisibility({ visibilityProperty: true });
const small = (element) => element.clientWidth < 3; // inline, or for screen readers only

// What is wider than its box; "scrolls" if a scroll bar shows the rest.
window.cutOff = () => {
  const found = [];
  for (const element of document.querySelectorAll(".bd-article, .bd-article *")) {
    if (small(element) || !shown(element) || element.closest("svg, math")) continue;
    const style = getComputedStyle(element);
    if (element.scrollWidth <= element.clientWidth + 1 || style.overflowX === "visible") continue;
    const borders = parseFloat(style.borderTopWidth) + parseFloat(style.borderBottomWidth);
    const bar = element.offsetHeight - element.clientHeight - borders > 2;
    found.push([bar ? "scrolls" : "cut", `${name(element)}, ${element.scrollWidth - element.clientWidth} px`]);
  }
  return found;
};
window.sideways = () => {
  const page = document.scrollingElement;
  if (page.scrollWidth <= innerWidth) return [];
  const wide = [...document.querySelectorAll("article *")].filter((e) => shown(e) && e.getBoundingClientRect().right > innerWidth + 1);
  return [`${page.scrollWidth} px, perhaps by ${wide.slice(-1).map(name)}`];
};

// Pictures: images and drawings in the article; not formulas, and not icons in the theme's buttons.
const pictures = () =>
  [...document.querySelectorAll("article img, article svg")].filter(
    (e) => shown(e) && !e.closest("math, button, a, svg svg, [aria-hidden=true]"),
  );
window.unexplained = () =>
  pictures().flatMap((picture) => {
    const holder = picture.closest("[role=img]") ?? picture;
    const text = holder.getAttribute("alt") ?? holder.getAttribute("aria-label") ?? holder.querySelector("title")?.textContent ?? "";
    const caption = picture.closest("figure")?.querySelector("figcaption")?.textContent ?? "";
    const lacks = [];
    if (text.trim().length < 20 || /\.(svg|png)$|[0-9a-f]{16}/.test(text)) lacks.push(`alternative text ${JSON.stringify(text)}`);
    if (caption.trim().length < 20) lacks.push("no caption");
    return lacks.length ? [`${name(picture)}${picture.getAttribute("src") ?? ""}: ${lacks}`] : [];
  });
// How much larger a drawing's own pixels are seen, also where a label is turned.
const scale = (matrix) => (matrix ? Math.sqrt(Math.abs(matrix.a * matrix.d - matrix.b * matrix.c)) : 1);
// Sizes of labels in pixels as they are seen: of drawings in the page, and for an image its scale.
window.labels = () => ({
  drawn: pictures().flatMap((picture) =>
    [...picture.querySelectorAll("text")].filter((e) => e.textContent.trim()).map((e) => [
      name(picture),
      parseFloat(getComputedStyle(e).fontSize) * scale(e.getScreenCTM()),
    ])),
  images: pictures().filter((e) => e.tagName === "IMG").map((e) => [e.src, e.getBoundingClientRect().width]),
});
// What axe finds: by all rules; by those about shape alone; or by the one about contrast, where a page has inks of its own.
// The words of code are too many to be asked one by one, and menus are the same on all pages.
window.violations = async (rules, kind, menus) => {
  const context = { exclude: ["pre", ...(menus ? [] : [".bd-sidebar-primary", ".bd-sidebar-secondary"])] };
  const options = { runOnly: { type: "tag", values: rules }, resultTypes: ["violations"], rules: {}, preload: false };
  if (kind === "shape") options.rules["color-contrast"] = { enabled: false };
  if (kind === "inks") {
    context.include = ["article .cell_output", "article figure"].filter((place) => document.querySelector(place));
    options.runOnly = { type: "rule", values: ["color-contrast"] };
    if (!context.include.length) return [];
  }
  const { violations } = await axe.run(context, options);
  return violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.target} ${node.html.slice(0, 80)}`));
};
