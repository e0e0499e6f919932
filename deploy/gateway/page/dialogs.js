// The page's dialogs.

/** Show a dialog; returns whether it was closed with the button of this value. */
export function confirmed(dialog, value) {
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", () => resolve(dialog.returnValue === value), { once: true });
  });
}
