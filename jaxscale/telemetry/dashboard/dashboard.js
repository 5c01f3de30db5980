// Keeps the page live: asks for it again and puts what is new in place, unless somebody is reading values off a curve.
"use strict";
(() => {
  const EVERY = 3000;
  // A network that is cut answers nothing, not even that: until then no other question is asked.
  const PATIENCE = 20000;
  const main = document.querySelector("main");
  const gone = document.getElementById("gone");

  // Scripts run when they are inserted: once for each set of curves.
  function drawCursors() {
    if (!document.getElementById("chart-data")) return;
    const script = document.createElement("script");
    script.src = "/assets/report.js";
    main.append(script);
  }

  const reading = () => document.querySelector(".cursor:not([hidden])") || main.querySelector("input:focus-visible");

  function put(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    const opened = [...main.querySelectorAll("details")].map((one) => one.open);
    const scrolled = [...main.querySelectorAll("pre")].map((one) => one.scrollTop);
    const focused = document.activeElement && document.activeElement.getAttribute("href");
    main.replaceChildren(...fresh.querySelector("main").childNodes);
    document.title = fresh.title;
    const details = [...main.querySelectorAll("details")];
    if (details.length === opened.length) details.forEach((one, i) => { one.open = opened[i]; });
    const texts = [...main.querySelectorAll("pre")];
    if (texts.length === scrolled.length) texts.forEach((one, i) => { one.scrollTop = scrolled[i]; });
    if (focused) [...main.querySelectorAll("a")].find((one) => one.getAttribute("href") === focused)?.focus();
    drawCursors();
  }

  let asking = false;
  async function refresh() {
    if (asking || document.hidden || reading()) return;
    asking = true;
    try {
      const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
      const html = await answer.text();
      gone.hidden = answer.ok;
      if (answer.ok && !reading()) put(html);
    } catch {
      gone.hidden = false;
    } finally {
      asking = false;
    }
  }

  // Ticking a run compares it at once.
  main.addEventListener("change", (event) => {
    if (event.target.matches("input[name=run]")) event.target.form.requestSubmit();
  });

  drawCursors();
  setInterval(refresh, EVERY);
  document.addEventListener("visibilitychange", refresh);
})();
