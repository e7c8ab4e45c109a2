// What the pages do beyond HTML: theme, keys, the state of the event stream, pausing the live view.
(() => {
  const root = document.documentElement;

  // --- theme: system, light, dark ---
  const button = document.getElementById("theme");
  const order = ["system", "light", "dark"];
  const current = () => root.dataset.theme ?? "system";
  const name = () => button.setAttribute("aria-label", `Colours: ${current() === "system" ? "as the system" : current()}`);
  if (button) {
    button.hidden = false;
    name();
    button.addEventListener("click", () => {
      const next = order[(order.indexOf(current()) + 1) % order.length];
      if (next === "system") delete root.dataset.theme; else root.dataset.theme = next;
      if (next === "system") localStorage.removeItem("kedge-theme"); else localStorage.setItem("kedge-theme", next);
      name();
      document.dispatchEvent(new CustomEvent("kedge:theme"));
    });
  }

  // --- keys: / searches, j and k (or arrows) walk the rows, Enter opens the row's link ---
  const typing = (element) => element.closest("input, select, textarea, dialog[open]");
  const rows = () => [...document.querySelectorAll("table[data-rows] tbody tr")].filter((row) => row.querySelector("a"));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target.id === "search") event.target.blur();
    if (typing(event.target)) return;
    if (event.key === "/") {
      event.preventDefault();
      document.getElementById("search")?.select();
    }
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const all = rows();
    const at = all.indexOf(event.target.closest("tr"));
    if (at < 0 && event.key.startsWith("Arrow")) return;
    const next = all[Math.min(all.length - 1, Math.max(0, at + step))];
    if (next) {
      event.preventDefault();
      next.querySelector("a").focus();
    }
  });

  // --- on a phone the row of pages is longer than the screen: show where one is ---
  document.querySelector(".nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

  // --- selects and switches that send their form at once ---
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
  });

  // --- a link that ticks every box of a form, and none when all are; without scripts the page does it ---
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-tick]");
    if (!link) return;
    event.preventDefault();
    const boxes = [...document.getElementById(link.dataset.tick).elements].filter((box) => box.type === "checkbox");
    const all = boxes.every((box) => box.checked);
    for (const box of boxes) box.checked = !all;
  });

  // --- how the event stream is ---
  const stream = document.getElementById("stream");
  const say = (state, text) => {
    if (!stream) return;
    stream.hidden = false;
    delete stream.dataset.on;
    delete stream.dataset.off;
    stream.dataset[state] = "";
    stream.querySelector(".text").textContent = text;
    stream.title = text;
  };
  let had = false;
  document.addEventListener("htmx:sse:after:connection", (event) => {
    if (event.detail.connection.status !== 200) return;
    say("on", "live");
    // What happened while the stream was away is in no message: the page asks for its part once.
    if (had && event.target.id === "wire") htmx.trigger(document.body, "fleet:resync");
    had ||= event.target.id === "wire";
  });
  document.addEventListener("htmx:sse:error", () => say("off", "reconnecting"));
  document.addEventListener("htmx:sse:close", () => say("off", "not live"));

  // --- the live view: pause keeps what is on the screen, and counts what is missed ---
  const pause = document.getElementById("pause");
  const list = document.getElementById("happenings");
  const LONGEST = 300;
  let missed = 0;
  if (pause && list) {
    pause.hidden = false;
    pause.addEventListener("click", () => {
      const paused = pause.getAttribute("aria-pressed") !== "true";
      pause.setAttribute("aria-pressed", String(paused));
      if (!paused && missed) location.reload();
      pause.textContent = paused ? "Paused" : "Pause";
    });
    list.addEventListener("htmx:sse:before:message", (event) => {
      if (pause.getAttribute("aria-pressed") !== "true") return;
      event.detail.cancelled = true;
      missed += 1;
      pause.textContent = `Show ${missed} new`;
    });
    list.addEventListener("htmx:sse:after:message", () => {
      document.getElementById("nothing-yet")?.remove();
      while (list.children.length > LONGEST) list.lastElementChild.remove();
    });
  }
})();
