// Draws saved ipywidgets without a kernel and without any other script: sliders, buttons and lists that are linked
// in the browser (jslink) to stacks of pictures. A view that has any other widget in it, a panel that computes live say,
// keeps its still picture, and a line says where it runs.
document.addEventListener("DOMContentLoaded", () => {
  const NEEDS_KERNEL = "Runs live in JupyterLab (make lab).";
  const saved = document.querySelector('script[type="application/vnd.jupyter.widget-state+json"]');
  const models = saved ? JSON.parse(saved.textContent).state : {};
  const listeners = {}; // "id.key" -> functions of the new value
  const idOf = (reference) => reference.replace("IPY_MODEL_", "");
  const get = (id, key) => models[id].state[key];
  const on = (id, key, act) => (listeners[`${id}.${key}`] ??= []).push(act);
  const set = (id, key, value) => {
    if (get(id, key) === value) return; // ends the ring of a two-way link
    models[id].state[key] = value;
    for (const act of listeners[`${id}.${key}`] ?? []) act(value);
  };
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const box = (id, row) => {
    const made = element("div", {}, ...get(id, "children").map((child) => draw(idOf(child))));
    made.style.cssText = row ? "display:flex; gap:1em; flex-wrap:wrap" : "";
    return made;
  };
  const text = (id) => {
    const made = element("div", { innerHTML: get(id, "value") });
    on(id, "value", (value) => (made.innerHTML = value));
    return made;
  };

  const kinds = {
    VBoxModel: (id) => box(id, false),
    BoxModel: (id) => box(id, true),
    HBoxModel: (id) => box(id, true),
    HTMLModel: text,
    HTMLMathModel: text,
    LabelModel: text,
    StackModel: (id) => {
      const pages = get(id, "children").map((child) => draw(idOf(child)));
      const show = (index) => pages.forEach((page, i) => (page.hidden = i !== index));
      show(get(id, "selected_index"));
      on(id, "selected_index", show);
      return element("div", {}, ...pages);
    },
    SelectionSliderModel: (id) => {
      const labels = get(id, "_options_labels");
      const slider = element("input", { type: "range", min: 0, max: labels.length - 1, step: 1 });
      const shown = element("output");
      const show = (index) => {
        slider.value = index;
        shown.textContent = labels[index];
        slider.setAttribute("aria-valuetext", labels[index]);
      };
      show(get(id, "index"));
      slider.addEventListener("input", () => set(id, "index", Number(slider.value)));
      on(id, "index", show);
      return element("label", { className: "widget-control" }, get(id, "description"), slider, shown);
    },
    ToggleButtonsModel: (id) => {
      const buttons = get(id, "_options_labels").map((label) => element("button", { type: "button", textContent: label }));
      const show = (index) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === index));
      buttons.forEach((button, i) => button.addEventListener("click", () => set(id, "index", i)));
      show(get(id, "index"));
      on(id, "index", show);
      const group = element("div", { className: "widget-control" }, get(id, "description"), ...buttons);
      group.setAttribute("role", "group");
      group.setAttribute("aria-label", get(id, "description"));
      return group;
    },
    DropdownModel: (id) => {
      const list = element("select", {}, ...get(id, "_options_labels").map((label) => element("option", { textContent: label })));
      list.selectedIndex = get(id, "index");
      list.addEventListener("change", () => set(id, "index", list.selectedIndex));
      on(id, "index", (index) => (list.selectedIndex = index));
      return element("label", { className: "widget-control" }, get(id, "description"), list);
    },
  };
  const draw = (id) => {
    const kind = kinds[models[id]?.model_name];
    if (!kind) throw new Error(`no drawing for ${models[id]?.model_name}`);
    return kind(id);
  };

  for (const id of Object.keys(models)) {
    const name = models[id].model_name;
    if (name !== "LinkModel" && name !== "DirectionalLinkModel") continue;
    const [[from, fromKey], [to, toKey]] = [get(id, "source"), get(id, "target")].map(([m, key]) => [idOf(m), key]);
    on(from, fromKey, (value) => set(to, toKey, value));
    if (name === "LinkModel") on(to, toKey, (value) => set(from, fromKey, value));
  }
  for (const place of document.querySelectorAll("[data-widget]")) {
    try {
      place.replaceChildren(draw(place.dataset.widget));
    } catch (error) {
      console.info(`still picture kept: ${error.message}`);
      if (place.querySelector("img")) place.append(element("p", { className: "still", textContent: NEEDS_KERNEL }));
    }
  }
});
