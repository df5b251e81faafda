// The book's search. The index and what ranks it are loaded when a reader first turns to a search field; both are scripts,
// since a page that was opened as a file may load nothing else.
(() => {
  const here = document.currentScript.src.replace(/[^/]*$/, "");
  const root = document.documentElement.dataset.content_root;
  const EXCERPT = 170; // characters
  const COMMON = new Set(
    "a an and are as at be by can do does explain for from how i if in is it its many mean means much my need of on or should that the this to what when where which why with work works you your".split(" "),
  );

  const WORD = /[\p{L}\p{N}_'’-]+/gu;
  const BETWEEN = /[_'’-]+|(?<=\p{Ll})(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll}{2})/u;
  const parts = (word) => word.split(BETWEEN).filter(Boolean);
  const whole = (word) => parts(word).join("");
  // Of a word that is made of several also its parts: warm-up is warmup, warm and up; MultiHeadAttention is four.
  const words = (text) =>
    (text.match(WORD) ?? []).flatMap((word) => (parts(word).length > 1 ? [whole(word), ...parts(word)] : parts(word)));
  const stem = (word) => word.toLowerCase().replace(/(?<=\p{L}{3})(ing|ed|es?|(?<![su])s)$/u, "");
  const BOOSTS = { title: 4, taught: 4, chapter: 1, names: 5, terms: 2.5, text: 1 };
  // What a query asks: no words that stand everywhere, and the parts only of words that the book does not have. It may
  // have them as two: layernorm is layer norm.
  const telling = (text) => (text.match(WORD) ?? []).filter((word) => !COMMON.has(word.toLowerCase()));
  const asking = (query, ranking) =>
    (telling(query).length ? telling(query) : query.match(WORD) ?? [])
      .flatMap((word) => (ranking.has(stem(whole(word))) ? [whole(word)] : parts(word).flatMap((part) => asTwo(part, ranking))))
      .map(stem);
  const asTwo = (word, ranking) => {
    const cuts = [...word].map((_, place) => [word.slice(0, place), word.slice(place)]);
    const known = (part) => part.length > 2 && ranking.has(stem(part));
    return (!ranking.has(stem(word)) && cuts.find((cut) => cut.every(known))) || [word];
  };

  const load = (name) =>
    new Promise((done, failed) => {
      const script = document.createElement("script");
      Object.assign(script, { src: here + name, onload: done, onerror: failed });
      document.head.append(script);
    });

  let engine;
  const ready = () =>
    (engine ??= Promise.all([load("ranking.js"), load("search_index.js")]).then(
      () => new Ranking(SEARCH_INDEX, BOOSTS, (text) => words(text).map(stem)),
    ));

  // What tells more than how often a word occurs: all words are there, they stand together, a section
  // explains, and it is where just this is taught.
  const find = (query, ranking) => {
    const asked = asking(query, ranking);
    const stems = (text) => telling(text).flatMap(parts).map(stem);
    const wanted = ` ${stems(query).join(" ")} `;
    const pairs = stems(query).slice(1).map((word, place) => ` ${stems(query)[place]} ${word} `);
    const worth = ({ score, answers, url, title, taught, text }) => {
      const said = ` ${stems(`${title} ${text}`).join(" ")} `;
      const together = pairs.filter((pair) => said.includes(pair)).length / (pairs.length || 1);
      const explains = !/^(\d|Exercise|One more exercise|Is it right|What you have now)/.test(title);
      const taken = `${taught}${title}`.split("\n").map(stems).filter((term) => term.length && wanted.includes(` ${term.join(" ")} `));
      const teaches = Math.max(0, ...taken.map(({ length }) => length)) / stems(query).length;
      const lookedUp = /^(glossary|references)/.test(url); // a section says more
      return score * (answers.size / new Set(asked).size) ** 2 * (1 + 2 * together) * (explains ? 1 : 0.5) * (lookedUp ? 0.25 : 1 + teaches ** 2);
    };
    return ranking
      .search(new Set(asked), asked.at(-1)) // the last word may not be typed to its end
      .map((result) => [worth(result), result])
      .sort(([a], [b]) => b - a)
      .map(([, result]) => result);
  };

  // The part of a text that holds most of the words, as nodes, with the words marked.
  const excerpt = (text, found) => {
    const hits = [...text.matchAll(/[\p{L}\p{N}_'’-]+/gu)]
      .map((match) => ({ at: match.index, word: match[0], terms: words(match[0]).map(stem).filter((term) => found.has(term)) }))
      .filter((hit) => hit.terms.length);
    const seen = (hit) =>
      new Set(hits.filter(({ at }) => at >= hit.at && at < hit.at + EXCERPT - 40).flatMap(({ terms }) => terms)).size;
    const best = hits.reduce((a, b) => (seen(b) > seen(a) ? b : a), hits[0] ?? { at: 0 });
    const sentence = text.lastIndexOf(". ", best.at) + 2;
    let start = best.at - sentence < 60 ? (sentence > 1 ? sentence : 0) : text.indexOf(" ", best.at - 50) + 1;
    const end = text.length - start > EXCERPT ? text.lastIndexOf(" ", start + EXCERPT) : text.length;
    const nodes = [sentence === start || !start ? "" : "… "];
    for (const { at, word } of hits.filter(({ at }) => at >= start && at < end)) {
      const mark = document.createElement("mark");
      mark.textContent = word;
      nodes.push(text.slice(start, at), mark);
      start = at + word.length;
    }
    return [...nodes, text.slice(start, end).trimEnd(), end < text.length ? " …" : ""];
  };

  const item = ({ url, title, chapter, text, words }) => {
    const link = document.createElement("a");
    link.href = root + url;
    link.textContent = title === chapter ? title : `${chapter}: ${title}`;
    const prose = document.createElement("p");
    prose.append(...excerpt(text, words));
    const entry = document.createElement("li");
    entry.append(link, prose);
    return entry;
  };

  // Show, below a search field, what is found while somebody types; the arrow keys go through it.
  const attend = (form, most) => {
    const field = form.querySelector("input");
    const status = document.createElement("p");
    status.role = "status";
    const list = document.createElement("ol");
    const found = document.createElement("div");
    found.className = "search-found";
    found.append(status, list);
    form.after(found);

    const show = async () => {
      const query = field.value.trim();
      const results = query ? find(query, await ready()) : [];
      if (query !== field.value.trim()) return;
      list.replaceChildren(...results.slice(0, most).map(item));
      status.textContent = query && (results.length ? `${results.length} section${results.length > 1 ? "s" : ""}` : "Nothing was found.");
    };
    field.addEventListener("focus", ready, { once: true });
    field.addEventListener("input", show);
    form.parentElement.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const stops = [field, ...list.querySelectorAll("a")];
      const place = stops.indexOf(document.activeElement);
      if (!step || place < 0) return;
      event.preventDefault();
      stops[Math.min(Math.max(place + step, 0), stops.length - 1)].focus();
    });
    list.addEventListener("click", (event) => {
      if (event.target.closest("a")) form.closest("dialog")?.close();
    });
    return { field, show, list };
  };

  const dialog = document.querySelector("dialog form.bd-search");
  if (dialog) attend(dialog, 8);
  const page = document.querySelector("article form.bd-search");
  if (page) {
    const { field, show, list } = attend(page, 30);
    list.id = "search-results";
    field.value = new URLSearchParams(location.search).get("q") ?? "";
    field.focus();
    show();
  }
})();
