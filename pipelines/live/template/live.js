(() => {
  "use strict";
  const refresh = Number(document.getElementById("now").dataset.refresh);
  const silent = document.getElementById("silent");
  const shown = {};
  let figures = null;
  let heard = new Date();

  // Parts come from the server that this page came from, escaped there; a part that is as it was stays, so that what is
  // open stays open and the keyboard stays where it is.
  const put = (parts) => {
    for (const [name, html] of Object.entries(parts)) {
      const place = document.getElementById(`part-${name}`);
      if (!place || shown[name] === html) continue;
      const open = [...place.querySelectorAll("details")].map((details) => details.open);
      place.innerHTML = html;
      place.querySelectorAll("details").forEach((details, i) => { details.open = Boolean(open[i]); });
      shown[name] = html;
    }
  };
  const ask = async (name) => {
    const answer = await fetch(name, { cache: "no-store" });
    if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
    return answer.json();
  };
  const look = async () => {
    let complete = false;
    try {
      const state = await ask("state.json");
      put({ now: state.now });
      if (state.figures !== figures) {
        put(await ask("figures.json"));
        figures = state.figures;
      }
      complete = state.complete;
      heard = new Date();
      silent.hidden = true;
    } catch {
      silent.querySelector("span").textContent = `Last heard at ${heard.toLocaleTimeString()}.`;
      silent.hidden = false;
    }
    setTimeout(look, complete ? 5 * refresh : refresh);
  };
  look();
})();
