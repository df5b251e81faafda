// What the book's pages need besides the theme's own scripts; all text can be read without it.

// A box that scrolls can be reached by the Tab key, and only then.
function markScrolling() {
  for (const box of document.querySelectorAll(".bd-article *")) {
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
    if (scrolls && box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else if (box.tabIndex === 0 && scrolls) box.removeAttribute("tabindex");
  }
}
addEventListener("load", markScrolling);
addEventListener("resize", markScrolling);
document.addEventListener("toggle", markScrolling, true);

// Paper is white, and all folds are open on it.
const beforePrint = {theme: "", folds: []};
addEventListener("beforeprint", () => {
  beforePrint.theme = document.documentElement.dataset.theme;
  beforePrint.folds = [...document.querySelectorAll("details:not([open])")];
  document.documentElement.dataset.theme = "light";
  for (const fold of beforePrint.folds) fold.open = true;
});
addEventListener("afterprint", () => {
  document.documentElement.dataset.theme = beforePrint.theme;
  for (const fold of beforePrint.folds) fold.open = false;
});
