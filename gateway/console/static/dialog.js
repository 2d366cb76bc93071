// Questions before something that cannot simply be undone.

import { h } from "./dom.js";

/**
 * Ask, and return whether the person confirmed. `typed`: the text that has to be typed first, for what is dangerous.
 *
 * `body`: strings and nodes, one paragraph or element each. Escape and a click on Cancel are a no.
 */
export function confirm({ title, body = [], action = "OK", typed = null, danger = typed !== null }) {
  return new Promise((resolve) => {
    const before = document.activeElement;
    const button = h("button", { class: `button ${danger ? "danger" : "primary"}`, type: "submit" }, action);
    const input =
      typed === null
        ? null
        : h("input", {
            id: "typed", autocomplete: "off", autocapitalize: "off", spellcheck: "false", oninput: check,
          });
    const dialog = h(
      "dialog",
      { class: "dialog", "aria-labelledby": "dialog-title" },
      h(
        "form",
        { onsubmit: submit },
        h("h2", { id: "dialog-title" }, title),
        body.map((each) => (typeof each === "string" ? h("p", {}, each) : each)),
        input && h("label", { for: "typed" }, "Type ", h("code", {}, typed), " to go on"),
        input,
        h(
          "div",
          { class: "dialog-actions" },
          h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"),
          button,
        ),
      ),
    );
    let confirmed = false;

    function check() {
      button.disabled = input !== null && input.value.trim() !== typed;
    }

    function submit(event) {
      event.preventDefault();
      check();
      if (button.disabled) return;
      confirmed = true;
      dialog.close();
    }

    dialog.addEventListener("close", () => {
      dialog.remove();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
      resolve(confirmed);
    });
    check();
    document.body.append(dialog);
    dialog.showModal();
    (input ?? button).focus();
  });
}
