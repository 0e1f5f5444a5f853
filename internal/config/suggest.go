package config

import "strings"

// suggest returns ". Did you mean x?" with the known word that is most similar to word,
// or "" if no word is similar.
func suggest(word string, known []string) string {
	best := similar(word, known)
	if best == "" {
		return ""
	}
	return ". Did you mean " + best + "?"
}

// similar returns the known word that is most similar to word, or "" if no word is similar.
func similar(word string, known []string) string {
	best, at := "", len(word)/3+2
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < at {
			best, at = k, d
		}
	}
	return best
}

// distance is the Levenshtein distance of a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := i
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal, row[j+1] = row[j+1], min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
