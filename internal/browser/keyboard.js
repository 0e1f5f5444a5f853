// What the Tab key must reach, in the order of the page. A group of radio buttons is one
// stop.
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
	window.auditStops = stops;
	return stops.length;
})()
