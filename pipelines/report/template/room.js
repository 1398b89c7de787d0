(() => {
  "use strict";
  const room = document.getElementById("room");
  const articles = room ? [...room.querySelectorAll("article")] : [];
  if (!articles.length) return;

  // --- which document is open ---
  const links = [...room.querySelectorAll(".documents a")];
  const open = (id) => {
    for (const article of articles) article.classList.toggle("open", article.id === id);
    for (const link of links) {
      if (link.hash === `#${id}`) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    leave();
  };
  const follow = (focus) => {
    const found = articles.find((article) => `#${article.id}` === location.hash);
    open((found || articles.find((article) => article.classList.contains("open")) || articles[0]).id);
    if (found && focus) found.querySelector("h3").focus();
  };
  window.addEventListener("hashchange", () => follow(true));

  // --- colours ---
  const colour = document.getElementById("colour");
  colour.hidden = false;
  colour.addEventListener("change", (event) => { room.className = `by-${event.target.value}`; });

  // --- what a token says ---
  const readout = room.querySelector(".readout");
  let here = null;
  function leave() {
    if (here) here.classList.remove("here");
    here = null;
    readout.hidden = true;
  }
  const show = (token) => {
    if (!token || token === here) return;
    leave();
    here = token;
    here.classList.add("here");
    const { s, e, m, b, n } = token.dataset;
    const text = token.textContent.replace(/\n/g, "⏎").replace(/\t/g, "⇥");
    const odds = Math.exp(-Number(s));
    const parts = [`surprisal ${s} nats (p ${odds >= 0.001 ? odds.toFixed(3) : odds.toExponential(1)})`, `entropy ${e} nats`];
    if (b) parts.push(`beyond its entropy ${b} nats`);
    if (m) parts.push(`memory ${m} nats`);
    if (n) parts.push(`${n} tokens of one character`);
    readout.querySelector(".what").textContent = `“${text}”`;
    readout.querySelector(".numbers").textContent = parts.join(" · ");
    readout.hidden = false;
  };
  const tokenOf = (event) => (event.target.closest ? event.target.closest(".tokens i") : null);
  room.addEventListener("pointerover", (event) => { if (tokenOf(event)) show(tokenOf(event)); });
  room.addEventListener("click", (event) => { if (tokenOf(event)) show(tokenOf(event)); });
  room.addEventListener("keydown", (event) => {
    const tokens = event.target.classList.contains("tokens") ? event.target : null;
    if (!tokens || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = [...tokens.children];
    const at = here && here.parentNode === tokens ? all.indexOf(here) : -1;
    const threshold = Number(tokens.closest("[data-threshold]").dataset.threshold);
    const hard = (token) => Math.min(Number(token.dataset.b || token.dataset.s), Number(token.dataset.m || Infinity)) > threshold;
    const to = {
      ArrowRight: () => all[Math.min(all.length - 1, at + 1)],
      ArrowLeft: () => all[Math.max(0, at - 1)],
      Home: () => all[0],
      End: () => all[all.length - 1],
      n: () => all.slice(at + 1).find(hard),
      p: () => all.slice(0, Math.max(0, at)).reverse().find(hard),
      Escape: () => { leave(); return null; },
    }[event.key];
    if (!to) return;
    event.preventDefault();
    const token = to();
    if (token) {
      show(token);
      token.scrollIntoView({ block: "nearest" });
    }
  });
  room.addEventListener("focusin", (event) => {
    if (event.target.classList.contains("tokens") && event.target.firstElementChild && !(here && here.parentNode === event.target)) {
      show(event.target.firstElementChild);
    }
  });
  follow(false);

  // --- which documents are listed ---
  const filters = document.getElementById("filters");
  const search = document.getElementById("filter-text");
  const selects = [...filters.querySelectorAll("select")];
  const entries = links.map((link) => {
    const { tiers, outcomes, sources } = link.parentNode.dataset;
    const article = document.getElementById(link.hash.slice(1));
    return {
      item: link.parentNode, article, pieces: null,
      has: { tiers: JSON.parse(tiers), outcomes: JSON.parse(outcomes), sources: JSON.parse(sources) },
    };
  });
  const piecesOf = (entry) => {
    // Read once, and not before somebody asks: pages hold tens of thousands of tokens.
    entry.pieces ||= [...entry.article.querySelectorAll("h3, .tokens, .text")].map(
      (part) => ({ part, text: part.textContent.toLowerCase() }));
    return entry.pieces;
  };
  const mark = (entry, text, chosen) => {
    for (const marked of entry.article.querySelectorAll(".match")) marked.classList.remove("match");
    const found = text ? piecesOf(entry).filter((piece) => piece.text.includes(text)).map((piece) => piece.part) : [];
    if (chosen.outcomes) {
      found.push(...[...entry.article.querySelectorAll("[data-outcomes]")].filter(
        (card) => JSON.parse(card.dataset.outcomes).includes(chosen.outcomes)));
    }
    if (chosen.tiers) {
      found.push(...[...entry.article.querySelectorAll("[data-tier]")].filter((part) => part.dataset.tier === chosen.tiers)
        .map((part) => part.querySelector("h4")));
    }
    for (const part of found) {
      part.classList.add("match");
      const closed = part.closest("details");
      if (closed) closed.open = true;
    }
  };
  const narrow = () => {
    const text = search.value.trim().toLowerCase();
    const chosen = Object.fromEntries(selects.map((select) => [select.dataset.filter, select.value]));
    const fitting = entries.filter((entry) =>
      selects.every((select) => !select.value || entry.has[select.dataset.filter].includes(select.value))
      && (!text || piecesOf(entry).some((piece) => piece.text.includes(text))));
    for (const entry of entries) {
      entry.item.hidden = !fitting.includes(entry);
      mark(entry, fitting.includes(entry) ? text : "", fitting.includes(entry) ? chosen : {});
    }
    const asked = text || Object.values(chosen).some(Boolean);
    filters.querySelector(".found").textContent = asked
      ? `${fitting.length || "none"} of the ${entries.length} here` : "";
    const now = entries.find((entry) => entry.article.classList.contains("open"));
    if (fitting.length && !fitting.includes(now)) open(fitting[0].article.id);
    else if (!fitting.length) open("");
  };
  filters.addEventListener("input", narrow);
  filters.hidden = false;
})();
