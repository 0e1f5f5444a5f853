package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	codeBlock = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	link      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading   = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// TestLinksOfTheDocumentsExist follows every link of the documents to a file of
// the repository, and to a heading if it names one.
func TestLinksOfTheDocumentsExist(t *testing.T) {
	root := filepath.Join("..", "..")
	documents := []string{filepath.Join(root, "README.md"), filepath.Join(root, "CHANGELOG.md")}
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".md" {
			documents = append(documents, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, document := range documents {
		for _, m := range link.FindAllStringSubmatch(prose(t, document), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			found++
			path := document
			if target != "" {
				path = filepath.Join(filepath.Dir(document), target)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s links to %s: %v", document, m[1], err)
			} else if anchor != "" && !hasHeading(prose(t, path), anchor) {
				t.Errorf("%s links to %s, which has no such heading", document, m[1])
			}
		}
	}
	if found < 50 {
		t.Errorf("only %d links were found", found)
	}
}

// prose returns a document without its code blocks.
func prose(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return codeBlock.ReplaceAllString(string(text), "")
}

// hasHeading reports whether a heading of the text has this anchor, as GitHub makes it.
func hasHeading(text, anchor string) bool {
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		if strings.ReplaceAll(name, " ", "-") == anchor {
			return true
		}
	}
	return false
}

// Every page is reached from the map, by links from page to page.
func TestEveryPageIsReachedFromTheMap(t *testing.T) {
	docs := filepath.Join("..", "..", "docs")
	reached := map[string]bool{}
	var follow func(path string)
	follow = func(path string) {
		if reached[path] || filepath.Ext(path) != ".md" {
			return
		}
		reached[path] = true
		for _, m := range link.FindAllStringSubmatch(prose(t, path), -1) {
			if target, _, _ := strings.Cut(m[1], "#"); target != "" && !strings.Contains(target, "://") {
				follow(filepath.Join(filepath.Dir(path), target))
			}
		}
	}
	follow(filepath.Join(docs, "index.md"))
	pages := 0
	err := filepath.WalkDir(docs, func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".md" {
			if pages++; !reached[path] {
				t.Errorf("%s is not reached from docs/index.md", path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if pages < 40 {
		t.Errorf("only %d pages were found", pages)
	}
}
