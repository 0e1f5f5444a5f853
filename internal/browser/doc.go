// Package browser has tests of all HTML pages in a real headless Chromium: those of the
// console and those of the reference scheduling module. The pages come from the built
// programs, on a PostgreSQL with a relay and a simulated court.
//
// Every page that a test opens is audited, in light and in dark, on a wide screen and on
// a phone: contrast, labels, headings, width, keyboard, and the same page without
// scripts. A page that loads something from another server, or writes an error to the
// browser's console, fails the test.
//
// "make test" runs the tests. "make screenshots" runs them too and writes the pictures of
// docs/screenshots.
//
// The package is a separate module, so that chromedp stays out of the main go.mod.
package browser
