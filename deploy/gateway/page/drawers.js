// On narrow screens the conversations and the panel are drawers.

const shade = document.getElementById("shade");
const drawers = [
  [document.getElementById("open-sidebar"), document.getElementById("sidebar")],
  [document.getElementById("open-panel"), document.getElementById("panel")],
];

/** Close what is open. */
export function close() {
  for (const [opener, drawer] of drawers) {
    drawer.classList.remove("open");
    opener.setAttribute("aria-expanded", "false");
  }
  shade.hidden = true;
}

for (const [opener, drawer] of drawers) {
  opener.addEventListener("click", () => {
    drawer.classList.add("open");
    opener.setAttribute("aria-expanded", "true");
    shade.hidden = false;
    drawer.querySelector("button, a, textarea, input")?.focus();
  });
  drawer.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || shade.hidden) return;
    event.stopPropagation();
    close();
    opener.focus();
  });
}
shade.addEventListener("click", close);
