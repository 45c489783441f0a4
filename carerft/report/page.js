// Turns stacked groups into a choice among them. Without JavaScript all of them are simply shown.
for (const box of document.querySelectorAll("[data-tabs]")) {
  const groups = [...box.children];
  if (groups.length < 2) continue;
  const bar = document.createElement("div");
  bar.className = "tabs";
  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", box.dataset.tabs);
  const choices = box.dataset.all ? [[box.dataset.all, groups]] : [];
  for (const group of groups) choices.push([group.dataset.title, [group]]);
  const choose = (button, shown) => {
    for (const other of bar.children) other.setAttribute("aria-pressed", String(other === button));
    for (const group of groups) group.hidden = !shown.includes(group);
  };
  for (const [title, shown] of choices) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = title;
    button.addEventListener("click", () => choose(button, shown));
    bar.append(button);
  }
  choose(bar.firstChild, choices[0][1]);
  box.classList.add("tabbed");
  box.prepend(bar);
}
