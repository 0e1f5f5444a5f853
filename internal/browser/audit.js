// audit returns what is wrong with the page that is shown, as a list of sentences. It
// looks at what the browser has computed, so it also sees mistakes that only one color
// scheme or one width has.
(() => {
	const wrong = [];
	const describe = (el) => {
		const text = (el.textContent || el.value || "").trim().replace(/\s+/g, " ").slice(0, 40);
		return `<${el.tagName.toLowerCase()}${el.id ? " id=" + el.id : ""}${typeof el.className === "string" && el.className ? " class=" + el.className : ""}>${text ? " " + JSON.stringify(text) : ""}`;
	};

	// Colors
	const parse = (text) => {
		const m = text.match(/^rgba?\(([^)]*)\)$/);
		if (!m) return null;
		const [r, g, b, a = 1] = m[1].split(/[\s,\/]+/).filter(Boolean).map(Number);
		return { r, g, b, a };
	};
	const over = (top, below) => ({
		r: top.r * top.a + below.r * (1 - top.a),
		g: top.g * top.a + below.g * (1 - top.a),
		b: top.b * top.a + below.b * (1 - top.a),
		a: 1,
	});
	const dark = matchMedia("(prefers-color-scheme: dark)").matches;
	const ground = dark ? { r: 18, g: 18, b: 18, a: 1 } : { r: 255, g: 255, b: 255, a: 1 };
	const background = (el) => {
		const layers = [];
		for (let e = el; e; e = e.parentElement) {
			const c = parse(getComputedStyle(e).backgroundColor);
			if (c && c.a > 0) layers.push(c);
			if (c && c.a === 1) break;
		}
		return layers.reduceRight((below, top) => over(top, below), ground);
	};
	const luminance = ({ r, g, b }) => {
		const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
		return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
	};
	const ratio = (a, b) => {
		const [x, y] = [luminance(a), luminance(b)];
		return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
	};
	const shown = (el) => {
		if (!el.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true })) return false;
		for (let e = el; e; e = e.parentElement) {
			const s = getComputedStyle(e);
			if (s.clipPath === "inset(50%)") return false;
		}
		const box = el.getBoundingClientRect();
		return box.width > 0 && box.height > 0 && box.right > 0;
	};
	const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	let texts = 0;
	for (let node; (node = walker.nextNode()); ) {
		const el = node.parentElement;
		if (!node.data.trim() || !el || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION", "TITLE", "DESC"].includes(el.tagName.toUpperCase()) || !shown(el)) continue;
		texts++;
		const style = getComputedStyle(el);
		const below = background(el);
		const color = parse(el.namespaceURI.endsWith("svg") ? style.fill : style.color);
		if (!color) {
			wrong.push(`the color ${style.color} of ${describe(el)} cannot be read`);
			continue;
		}
		let opacity = 1;
		for (let e = el; e; e = e.parentElement) opacity *= Number(getComputedStyle(e).opacity);
		const seen = over({ ...color, a: color.a * opacity }, below);
		const size = parseFloat(style.fontSize);
		const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
		const got = ratio(seen, below);
		if (got < (large ? 3 : 4.5)) wrong.push(`contrast ${got.toFixed(2)} of ${describe(el)}`);
		if (size < 12) wrong.push(`text of ${size} px: ${describe(el)}`);
	}
	if (texts < 3) wrong.push("the page has hardly any text");

	// Forms
	const fields = [...document.querySelectorAll("input:not([type=hidden]), select, textarea")];
	for (const el of fields) {
		const name = (el.labels && [...el.labels].map((l) => l.textContent).join("").trim()) || el.getAttribute("aria-label");
		if (!name) wrong.push(`no label: ${describe(el)} ${el.name}`);
		if (!shown(el)) continue;
		const style = getComputedStyle(el);
		if (!["radio", "checkbox"].includes(el.type)) {
			const edge = parse(style.borderTopColor);
			if (edge && ratio(over(edge, background(el.parentElement)), background(el.parentElement)) < 3) wrong.push(`the edge of ${describe(el)} ${el.name} is hard to see`);
			if (el.value && el.scrollWidth > el.clientWidth + 1 && el.type === "datetime-local") wrong.push(`the value of ${el.name} is cut`);
		}
	}
	for (const el of document.querySelectorAll("button, a[href], summary")) {
		if (!(el.textContent.trim() || el.getAttribute("aria-label"))) wrong.push(`nothing to read: ${describe(el)}`);
		if (el.matches("button, .button") && shown(el) && el.getBoundingClientRect().height < 24) wrong.push(`too small to touch: ${describe(el)}`);
	}
	for (const el of document.querySelectorAll("[aria-describedby], [aria-labelledby], [aria-controls]"))
		for (const attr of ["aria-describedby", "aria-labelledby", "aria-controls"])
			for (const id of (el.getAttribute(attr) || "").split(/\s+/).filter(Boolean))
				if (!document.getElementById(id)) wrong.push(`${attr}=${id} of ${describe(el)} points to nothing`);
	for (const el of document.querySelectorAll('a[href^="#"]'))
		if (!document.getElementById(el.getAttribute("href").slice(1))) wrong.push(`${describe(el)} leads to nothing`);

	// Structure
	if (!document.documentElement.lang) wrong.push("html has no lang");
	if (!document.title.trim()) wrong.push("the page has no title");
	for (const [what, query] of [["h1", "h1"], ["main", "main"]]) {
		const n = document.querySelectorAll(query).length;
		if (n !== 1) wrong.push(`${n} elements ${what}, not 1`);
	}
	let level = 0;
	for (const h of document.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
		const n = Number(h.tagName[1]);
		if (n > level + 1) wrong.push(`${describe(h)} comes after h${level}`);
		if (!h.textContent.trim()) wrong.push(`an empty ${h.tagName}`);
		level = n;
	}
	const ids = new Set();
	for (const el of document.querySelectorAll("[id]")) {
		if (ids.has(el.id)) wrong.push(`the id ${el.id} comes twice`);
		ids.add(el.id);
	}
	for (const el of document.querySelectorAll("img, svg"))
		if (el.getAttribute("aria-hidden") !== "true" && !el.getAttribute("alt") && !el.getAttribute("aria-label") && !el.getAttribute("aria-labelledby") && !el.querySelector("title"))
			wrong.push(`a picture without words: ${describe(el)}`);
	for (const el of document.querySelectorAll("table")) {
		if (!el.querySelector("th")) wrong.push(`a table without headings: ${describe(el)}`);
		for (const th of el.querySelectorAll("th")) if (!th.scope) wrong.push(`th without scope: ${describe(th)}`);
	}
	for (const el of document.querySelectorAll("[style], [onclick], [onchange], [onsubmit]")) wrong.push(`${describe(el)} has a style or a script inside the page`);
	if (document.querySelector("[tabindex]:not([tabindex='0'], [tabindex='-1'])")) wrong.push("a positive tabindex");

	// Width. Only an element that scrolls by itself may be wider than the screen.
	const width = document.documentElement.clientWidth;
	if (document.documentElement.scrollWidth > width) {
		const wide = [...document.body.querySelectorAll("*")].filter((el) => shown(el) && el.getBoundingClientRect().right > width + 1 && !el.closest(".scroll, pre")).slice(-3);
		wrong.push(`the page is ${document.documentElement.scrollWidth} px wide on a screen of ${width}: ${wide.map(describe).join(", ")}`);
	}
	const main = document.querySelector("main");
	if (main && main.scrollWidth > main.clientWidth) wrong.push(`the content is ${main.scrollWidth} px wide in a main of ${main.clientWidth}`);
	for (const el of document.body.querySelectorAll("*")) {
		const s = getComputedStyle(el);
		if (shown(el) && s.overflowX === "hidden" && el.scrollWidth > el.clientWidth + 1 && s.textOverflow !== "ellipsis") wrong.push(`cut off: ${describe(el)}`);
	}
	return [...new Set(wrong)];
})()
