// What the tests ask a page of the book, run in the browser. Each function answers with plain data.
window.book = {
  // Open every fold, so that what lies in it can be measured.
  openFolds() {
    for (const fold of document.querySelectorAll("details")) fold.open = true;
  },

  // The boxes of the article whose content is wider than they are, and whether a scroll bar is drawn under each.
  cut() {
    const boxes = [];
    for (const box of document.querySelectorAll(".bd-article, .bd-article *")) {
      const style = getComputedStyle(box);
      const over = box.scrollWidth - box.clientWidth;
      const hidden = box.clientWidth < 2 || style.visibility === "hidden";
      if (over < 2 || style.overflowX === "visible" || hidden) continue;
      const edges = parseFloat(style.borderTopWidth) + parseFloat(style.borderBottomWidth);
      boxes.push({
        what: box.closest(".cell_input") ? "code" : box.closest(".cell_output") ? "output" : box.localName,
        text: box.textContent.trim().slice(0, 60),
        over,
        bar: style.overflowX !== "hidden" && box.offsetHeight - box.clientHeight - edges >= 6,
      });
    }
    return boxes;
  },

  // By how many pixels the page itself can be moved sideways.
  sideways() {
    const page = document.scrollingElement;
    return page.scrollWidth - page.clientWidth;
  },

  // The smallest and largest size of the text in code cells and in prose.
  sizes() {
    const size = (selector) => {
      const found = [...document.querySelectorAll(selector)].map((box) => parseFloat(getComputedStyle(box).fontSize));
      return found.length ? [Math.min(...found), Math.max(...found)] : null;
    };
    return {code: size(".cell_input pre"), prose: size(".bd-article section > p")};
  },

  // What the Tab key reaches inside formulas.
  formulaStops() {
    return document.querySelectorAll(".math [tabindex], .math[tabindex='0'] math [tabindex]").length;
  },
};
