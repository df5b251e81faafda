// Which sections answer a query: BM25+ over several fields (Robertson and Zaragoza 2009; Lv and Zhai 2011).
//
//     new Ranking(records, { title: 4, text: 1 }, (text) => text.toLowerCase().split(" ")).search(["loss", "nan"])
class Ranking {
  static K = 1.2; // how soon a word that comes again counts no more
  static B = 0.3; // how much a long text must answer for its length
  static D = 0.5; // what it counts at least that a word is there at all
  static NEAR = 0.2; // the worth of a word that only begins like the one that was asked, or is spelled nearly so

  // `boosts`: what a word counts in each field; `terms`: a text's words, as they are to be compared.
  constructor(records, boosts, terms) {
    Object.assign(this, { records, boosts, lengths: {}, mean: {} });
    this.places = new Map(); // word → field → record → how often
    for (const field of Object.keys(boosts)) {
      const words = records.map((record) => terms(record[field]));
      this.lengths[field] = words.map(({ length }) => length);
      this.mean[field] = words.flat().length / records.length;
      words.forEach((found, record) => found.forEach((word) => this.#count(word, field, record)));
    }
  }

  #count(word, field, record) {
    if (!this.places.has(word)) this.places.set(word, new Map());
    const fields = this.places.get(word);
    if (!fields.has(field)) fields.set(field, new Map());
    fields.get(field).set(record, (fields.get(field).get(record) ?? 0) + 1);
  }

  has(word) {
    return this.places.has(word);
  }

  // Each record that holds one of the words, with its score, the asked words that it answers, and its own for them.
  search(asked, unfinished = "") {
    const scores = new Map();
    for (const word of asked) {
      for (const [near, worth] of this.#near(word, word === unfinished)) {
        for (const [field, counts] of this.places.get(near)) {
          const rare = Math.log(1 + (this.records.length - counts.size + 0.5) / (counts.size + 0.5));
          for (const [record, count] of counts) {
            if (!scores.has(record)) scores.set(record, { score: 0, answers: new Set(), words: new Set() });
            const found = scores.get(record);
            const length = 1 - Ranking.B + (Ranking.B * this.lengths[field][record]) / this.mean[field];
            const often = Ranking.D + (count * (Ranking.K + 1)) / (count + Ranking.K * length);
            found.score += worth * this.boosts[field] * rare * often;
            found.answers.add(word);
            found.words.add(near);
          }
        }
      }
    }
    return [...scores].map(([record, found]) => ({ ...this.records[record], ...found }));
  }

  // The word itself; and where it may not be typed to its end, or is in no text, those like it.
  *#near(word, unfinished) {
    if (this.has(word)) yield [word, 1];
    if (this.has(word) && !unfinished) return;
    for (const other of this.places.keys()) {
      if (other === word) continue;
      const more = other.startsWith(word) ? other.length - word.length : -1;
      if (more >= 0) yield [other, (Ranking.NEAR * word.length) / (word.length + 0.3 * more)];
      else if (!this.has(word)) {
        const typos = Ranking.typos(word, other, Math.round(word.length / 4));
        if (typos < Infinity) yield [other, (Ranking.NEAR * word.length) / (word.length + typos)];
      }
    }
  }

  // Letters to change, add or leave out to come from one word to the other; Infinity if more than `most`.
  static typos(one, other, most) {
    if (Math.abs(one.length - other.length) > most) return Infinity;
    let row = [...Array(other.length + 1).keys()];
    for (let i = 1; i <= one.length; i++) {
      const next = [i];
      for (let j = 1; j <= other.length; j++) {
        const same = one[i - 1] === other[j - 1] ? 0 : 1;
        next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + same);
      }
      if (Math.min(...next) > most) return Infinity;
      row = next;
    }
    return row[other.length] <= most ? row[other.length] : Infinity;
  }
}
