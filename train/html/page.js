(() => {
  const root = document.documentElement;
  root.classList.add("scripted");

  document.querySelector(".theme")?.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  const choices = [...document.querySelectorAll("[data-choose]")];
  const choose = chosen => {
    for (const button of choices) button.setAttribute("aria-pressed", button.dataset.choose === chosen);
    for (const part of document.querySelectorAll("[data-set]")) part.classList.toggle("off", part.dataset.set !== chosen);
  };
  for (const button of choices) button.addEventListener("click", () => choose(button.dataset.choose));
  if (choices.length) choose("0");

  for (const heading of document.querySelectorAll(".board th[data-column]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const table = heading.closest("table"), column = Number(heading.dataset.column);
      const sorted = heading.getAttribute("aria-sort");
      const up = sorted ? sorted === "descending" : heading.dataset.first === "ascending";
      for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const numeric = heading.classList.contains("n"), sign = up ? 1 : -1;
      const key = row => numeric ? row.cells[column].dataset.value : row.cells[column].textContent.trim();
      const order = (a, b) => {
        const [left, right] = [key(a), key(b)];
        if (left === undefined || right === undefined) return (left === undefined) - (right === undefined);
        return sign * (numeric ? left - right : left.localeCompare(right, "en", { numeric: true }));
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(order));
    });
  }
})();
