// What the Tab key must reach, in the order of the page, and where the focus is. A group of
// radio buttons is one stop. The list is made again each time, because a live page changes.
(() => {
	const seen = new Set();
	const stops = [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']")].filter((el) => {
		if (el.disabled || !el.checkVisibility({ visibilityProperty: true })) return false;
		const details = el.closest("details:not([open])");
		if (details && !el.matches("summary")) return false;
		if (el.type === "radio") {
			const group = el.form?.action + " " + el.name;
			if (seen.has(group)) return false;
			seen.add(group);
		}
		return true;
	});
	const el = document.activeElement, style = getComputedStyle(el), box = el.getBoundingClientRect();
	return {
		Stops: stops.length,
		At: stops.findIndex((o) => o === el || (o.type === "radio" && o.name === el.name && o.form === el.form)),
		Text: el.tagName + " " + (el.name || el.textContent.trim().slice(0, 40)),
		Visible: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
	};
})()
