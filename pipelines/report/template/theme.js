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
})();
