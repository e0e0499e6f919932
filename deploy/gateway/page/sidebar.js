// The list of conversations.

const ul = document.getElementById("conversations");

/** Show them; `shown` is the one on the screen, and `running` has those whose answers are being made. */
export function draw(conversations, { shown, running, address, removeConversation }) {
  const items = conversations.map((conversation) => {
    const li = document.createElement("li");
    li.classList.toggle("running", running.has(conversation.id));
    const link = document.createElement("a");
    link.href = address(conversation.id);
    link.textContent = conversation.title;
    if (conversation.id === shown) link.setAttribute("aria-current", "page");
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "icon";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Delete “${conversation.title}”`);
    remove.addEventListener("click", () => removeConversation(conversation));
    li.append(link, remove);
    return li;
  });
  ul.replaceChildren(...items);
  document.getElementById("nothing-yet").hidden = items.length > 0;
}
