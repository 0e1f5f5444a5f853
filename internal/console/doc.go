// Package console serves the pages on which people see what the relays do, and act.
//
// A page is one Go file and one template in pages/. The table in pages.go lists their
// addresses. Pages read with package inspect and act with package operate. All of them
// work without a script.
package console
