// The page's dialogs.

/** Show a dialog; returns whether it was closed with the button of this value. */
export function confirmed(dialog, value) {
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", () => resolve(dialog.returnValue === value), { once: true });
  });
}

// Enter in a field presses a form's first submit button, so the button that only closes is none.
for (const button of document.querySelectorAll("dialog button[type=button]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
