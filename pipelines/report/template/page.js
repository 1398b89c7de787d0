(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");

  // --- light and dark ---
  const theme = document.getElementById("theme");
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  const remembered = () => { try { return localStorage.getItem("thoughtmill-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme || (systemDark.matches ? "dark" : "light")) === "dark";
  const label = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  };
  if (remembered()) root.dataset.theme = remembered();
  theme.hidden = false;
  label();
  systemDark.addEventListener("change", label);
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("thoughtmill-theme", root.dataset.theme); } catch { /* a page from a file may not store */ }
    label();
  });

  const room = document.getElementById("room");
  const articles = [...room.querySelectorAll("article")];
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
  const threshold = Number(room.dataset.threshold);
  room.addEventListener("focusin", (event) => {
    if (event.target.classList.contains("tokens") && event.target.firstElementChild && !(here && here.parentNode === event.target)) {
      show(event.target.firstElementChild);
    }
  });
  follow(false);
})();
