// The classes: buttons with their keys, a search for long lists, new ones and other names.
import { element } from "/static/session.js";
import { post } from "/static/label_outbox.js";

const by = (id) => document.getElementById(id);
const SEARCH_FROM = 25; // classes
const NARROW_FROM = 11; // classes in three columns

export class Classes {
  /**
   * onChoose(name): a class was chosen. onChange(classes, renamed): the list is another; renamed is {from, to} or null.
   * sent(): waits until the answers are sent that were given with the present names.
   */
  constructor({ onChoose, onChange, sent }) {
    Object.assign(this, { onChoose, onChange, sent });
    this.list = [];
    this.mark = { chosen: [], proposed: [], several: false };
    by("classes").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) onChoose(button.dataset.name);
    });
    by("add").addEventListener("click", () => this.openNew());
    by("new").addEventListener("submit", (event) => { event.preventDefault(); this.#addNew(); });
    by("new-name").addEventListener("keydown", (event) => { if (event.key === "Escape") this.closeNew(); });
    by("edit").addEventListener("click", () => this.openRename());
    by("find").addEventListener("input", () => this.#filter());
    by("find").addEventListener("keydown", (event) => this.#findKey(event));
  }

  /** Show the classes of the server, which gives each its key. */
  update(list) {
    const same = JSON.stringify(list) === JSON.stringify(this.list);
    this.list = list;
    if (same) return;
    const shown = [...by("classes").children];
    if (list.length !== shown.length || list.some((one, i) => shown[i].dataset.name !== one.name)) {
      by("classes").replaceChildren(...list.map((one) => classButton(one)));
    }
    list.forEach((one, i) => {
      const button = by("classes").children[i];
      button.querySelector("kbd").textContent = one.key;
      button.querySelector("kbd").hidden = !one.key;
      button.querySelector(".faint").textContent = one.images || "";
    });
    by("classes").classList.toggle("many", list.length >= NARROW_FROM);
    by("find-label").hidden = list.length < SEARCH_FROM;
    by("edit").disabled = list.length === 0;
    this.#filter();
    this.show(this.mark);
  }

  /** Mark classes as chosen (the image's labels) and as proposed. */
  show(mark) {
    this.mark = mark;
    for (const button of by("classes").children) {
      const name = button.dataset.name;
      button.classList.toggle("proposed", mark.proposed.includes(name));
      button.classList.toggle("chosen", mark.chosen.includes(name));
      if (mark.several || mark.chosen.length) button.setAttribute("aria-pressed", mark.chosen.includes(name));
      else button.removeAttribute("aria-pressed");
    }
  }

  /** Return the name of the class with a key. */
  withKey(key) {
    return this.list.find((one) => one.key && one.key === key.toLowerCase())?.name;
  }

  openNew() {
    by("new").hidden = false;
    by("new-note").textContent = "";
    by("new-name").focus();
  }

  closeNew() {
    if (!this.list.length) return; // the first class has to be made
    by("new").hidden = true;
    by("new-name").value = "";
    by("stage").focus();
  }

  async #addNew() {
    const name = by("new-name").value.trim();
    if (!name) return this.closeNew();
    try {
      if (!this.list.some((one) => one.name === name)) {
        const { classes } = await post("/v1/label/classes", { add: name }, 10);
        this.update(classes);
        this.onChange(classes, null);
      }
      this.closeNew();
      this.onChoose(name);
    } catch (error) {
      by("new-note").textContent = error.status ? error.message : "The server does not answer; press Enter to try again.";
    }
  }

  openRename() {
    by("rename-note").textContent = "";
    by("rename-rows").replaceChildren(...this.list.map((one) => this.#renameRow(one.name)));
    by("rename").showModal();
    by("rename-rows").querySelector("input")?.focus();
  }

  #renameRow(name) {
    const form = element("form", { class: "row" });
    const input = element("input", { type: "text", maxlength: "200", "aria-label": `Name of ${name}`, autocomplete: "off", spellcheck: "false" });
    const button = element("button", {}, "Rename");
    input.value = name;
    let merge = false;
    input.addEventListener("input", () => { merge = false; button.textContent = "Rename"; });
    form.append(input, button);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const to = input.value.trim();
      if (!to || to === name) return;
      if (!merge && this.list.some((one) => one.name === to)) {
        merge = true;
        button.textContent = "Make one class of both";
        by("rename-note").textContent = `${to} is a class already. This cannot be undone.`;
        return;
      }
      try {
        await this.sent();
        const { classes } = await post("/v1/label/classes", { rename: name, to, ...(merge && { merge }) }, 10);
        this.update(classes);
        this.onChange(classes, { from: name, to });
        by("rename-rows").replaceChildren(...this.list.map((one) => this.#renameRow(one.name)));
        by("rename-note").textContent = "";
      } catch (error) {
        by("rename-note").textContent = error.status ? error.message : "The server does not answer; try again.";
      }
    });
    return form;
  }

  #filter() {
    const text = by("find").value.trim().toLowerCase();
    for (const button of by("classes").children) button.hidden = !button.dataset.name.toLowerCase().includes(text);
  }

  #findKey(event) {
    if (event.key === "Escape") by("find").value = "";
    else if (event.key !== "Enter") return;
    event.preventDefault();
    const first = [...by("classes").children].find((button) => !button.hidden);
    const found = event.key === "Enter" && by("find").value && first;
    by("find").value = "";
    this.#filter();
    by("stage").focus();
    if (found) this.onChoose(first.dataset.name);
  }
}

function classButton({ name }) {
  const button = element("button", { type: "button", class: "class" });
  button.dataset.name = name;
  const label = element("span", { class: "name" });
  name.split(/(?<=[_\-/.])/).forEach((part, i) => label.append(...(i ? [element("wbr")] : []), part));
  button.append(element("kbd"), label, element("span", { class: "faint" }));
  return button;
}
