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
// Leaves of a page what axe has to look at: of the words of code one of each kind, of a drawing its name.
window.thin = () => {
  const kinds = new Set();
  const spare = [...document.querySelectorAll("pre span")].filter((word) => {
    const box = word.closest("pre").parentElement;
    const kind = [word.className, box.className, box.parentElement.className].join("/");
    const again = kinds.has(kind) || !word.textContent.trim() || word.firstElementChild;
    kinds.add(kind);
    return again;
  });
  for (const word of spare) word.replaceWith(...word.childNodes);
  for (const box of document.querySelectorAll("pre")) box.normalize();
  for (const drawing of document.querySelectorAll("svg[role=img]")) drawing.replaceChildren();
  return [...kinds];
};
// One element for each pair of ink and paper that is not known yet: what is written in it, on all that lies behind it.
const looks = (within, known) => {
  const papers = new Map([[null, ""]]);
  const paper = (element) => {
    if (!papers.has(element)) {
      const { backgroundColor, backgroundImage, opacity } = getComputedStyle(element);
      const clear = backgroundColor === "rgba(0, 0, 0, 0)" && backgroundImage === "none" && opacity === "1";
      const own = clear ? [] : [backgroundColor, backgroundImage, opacity];
      papers.set(element, [paper(element.parentElement), ...own].join("/"));
    }
    return papers.get(element);
  };
  const found = new Map();
  for (const element of within.querySelectorAll("*")) {
    const written = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!written || !shown(element) || element.closest("svg, script, style")) continue;
    const { color, fontSize, fontWeight } = getComputedStyle(element);
    const look = [color, fontSize, fontWeight, paper(element)].join("/");
    if (!known.includes(look) && !found.has(look)) found.set(look, element);
  }
  return found;
};
// What axe finds in a part of the page: by the rules about shape, or by the one about contrast, which is asked of each
// look once; and the looks that it was asked of.
window.violations = async (rules, kind, within, known) => {
  const part = document.querySelector(within);
  const asked = kind === "inks" ? looks(part, known) : new Map();
  if (kind === "inks" && !asked.size) return { broken: [], asked: [] };
  const options = { resultTypes: ["violations"], preload: false };
  options.runOnly = kind === "inks" ? ["color-contrast"] : { type: "tag", values: rules };
  if (kind === "shape") options.rules = { "color-contrast": { enabled: false } };
  const { violations } = await axe.run(kind === "inks" ? { include: [...asked.values()] } : part, options);
  const told = ({ id, nodes }) => nodes.map((node) => `${id}: ${node.target} ${node.html.slice(0, 80)}`);
  return { broken: violations.flatMap(told), asked: [...asked.keys()] };
};
