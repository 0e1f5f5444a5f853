// Shows what the server sends in place of the live part of a page, and adds to each time
// what it is in the reader's own zone.
"use strict";

(() => {
	const live = document.getElementById("live");

	// offset is that of an RFC 3339 time, in minutes.
	const offset = (text) => {
		const m = /([+-])(\d\d):(\d\d)$/.exec(text);
		return m ? (m[1] + "1") * (m[2] * 60 + +m[3]) : 0;
	};

	const addOwnTimes = (part) => {
		for (const time of part.querySelectorAll("time[datetime]")) {
			const at = new Date(time.dateTime);
			if (isNaN(at) || -at.getTimezoneOffset() === offset(time.dateTime) || time.querySelector("span")) {
				continue;
			}
			const own = document.createElement("span");
			own.className = "quiet";
			own.textContent = " (" + at.toLocaleString([], { weekday: "short", hour: "2-digit", minute: "2-digit", timeZoneName: "short" }) + ")";
			time.append(own);
		}
	};

	// A reader who marks a text keeps it until the next change. The focus stays where it was.
	const show = (html) => {
		const marked = getSelection();
		if (!marked.isCollapsed && live.contains(marked.anchorNode)) {
			return;
		}
		// Several links may have the same address, so the place among them counts too.
		const focused = live.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
		const same = () => [...live.querySelectorAll('[href="' + CSS.escape(focused) + '"]')];
		const place = focused === null ? -1 : same().indexOf(document.activeElement);
		live.innerHTML = html;
		addOwnTimes(live);
		if (place >= 0) {
			const links = same();
			links[Math.min(place, links.length - 1)]?.focus({ preventScroll: true });
		}
	};

	addOwnTimes(document);
	if (live) {
		// A page that nobody sees needs no news: a browser has few connections to one server.
		let source = null;
		const follow = () => {
			if (document.hidden) {
				source?.close();
				source = null;
				return;
			}
			if (source) {
				return;
			}
			const mine = source = new EventSource(live.dataset.from);
			mine.addEventListener("message", (event) => show(event.data));
			// The server ends a connection with many others, or does not take it. It takes it later.
			mine.addEventListener("error", () => {
				if (source === mine && mine.readyState === EventSource.CLOSED) {
					setTimeout(() => location.reload(), 15000);
				}
			});
		};
		document.addEventListener("visibilitychange", follow);
		follow();
	}
})();
