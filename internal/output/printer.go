package output

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/text/width"

	"github.com/hms-mkt/lockstep/adapters"
)

// Row is one line of a table, and one object in JSON.
type Row interface {
	Header() []string // names of the columns
	Cells() []string  // the columns as text, as many as in the header
}

// Printer writes rows as they come. Close ends the output.
type Printer[R Row] struct {
	w       io.Writer
	format  Format
	header  []string
	hidden  []string // names of columns that the table leaves out
	widths  []int
	columns int   // of the screen; 0 when there is no limit
	inLine  []int // the columns of the table under the last header
	begun   bool
}

// Rows writes all rows of a table or a list.
func Rows[R Row](w io.Writer, format Format, rows ...R) error {
	p := NewPrinter[R](w, format)
	return errors.Join(p.Print(rows...), p.Close())
}

// NewPrinter returns a printer for rows that come one after the other. A table fits into
// the [Width] of w: a column that does not fit is written below its row, with its name.
// So a narrow screen hides nothing.
func NewPrinter[R Row](w io.Writer, format Format) *Printer[R] {
	var row R
	p := &Printer[R]{w: w, format: format, header: row.Header(), columns: Width(w)}
	for _, h := range p.header {
		p.widths = append(p.widths, displayed(h))
	}
	return p
}

// Without leaves columns out of tables, such as the one that has the same value in all
// rows because the user asked for it. JSON still has all fields.
func (p *Printer[R]) Without(names ...string) *Printer[R] {
	p.hidden = append(p.hidden, names...)
	return p
}

// Print writes rows. In a table, they are aligned with each other and with the
// rows before them.
func (p *Printer[R]) Print(rows ...R) error {
	if len(rows) == 0 {
		return nil
	}
	var b strings.Builder
	if p.format == Table {
		p.table(&b, rows)
	} else if p.format == CSV {
		if err := p.csv(&b, rows); err != nil {
			return err
		}
	} else if err := p.json(&b, rows); err != nil {
		return err
	}
	_, err := io.WriteString(p.w, b.String())
	return err
}

// Close writes the header of an empty table, or the closing bracket of a JSON array.
func (p *Printer[R]) Close() error {
	var b strings.Builder
	switch {
	case p.format == JSON && p.begun:
		b.WriteString("\n]\n")
	case p.format == JSON:
		b.WriteString("[]\n")
	case p.format == CSV && !p.begun:
		if err := p.csv(&b, nil); err != nil {
			return err
		}
	case p.format == Table && !p.begun:
		inLine, _ := p.layout()
		p.line(&b, p.header, inLine)
	}
	_, err := io.WriteString(p.w, b.String())
	return err
}

// csv writes rows as CSV. A spreadsheet would take a text that begins with =, +, @ or - for a
// formula, so such a text gets an apostrophe before it.
func (p *Printer[R]) csv(b *strings.Builder, rows []R) error {
	w := csv.NewWriter(b)
	w.UseCRLF = true
	if !p.begun {
		_ = w.Write(p.header) // the error is kept for Error
		p.begun = true
	}
	for _, row := range rows {
		cells := slices.Clone(row.Cells())
		for i, cell := range cells {
			if cell = adapters.Clean(cell, 0); len(cell) > 1 && strings.ContainsRune("=+@-", rune(cell[0])) {
				cell = "'" + cell
			}
			cells[i] = cell
		}
		_ = w.Write(cells)
	}
	w.Flush()
	return w.Error()
}

func (p *Printer[R]) json(b *strings.Builder, rows []R) error {
	for _, row := range rows {
		text, err := json.Marshal(row)
		if err != nil {
			return err
		}
		switch {
		case p.format == JSONL:
		case !p.begun:
			b.WriteString("[\n  ")
		default:
			b.WriteString(",\n  ")
		}
		b.Write(escape(text))
		if p.format == JSONL {
			b.WriteByte('\n')
		}
		p.begun = true
	}
	return nil
}

func (p *Printer[R]) table(b *strings.Builder, rows []R) {
	lines := make([][]string, 0, len(rows))
	for _, row := range rows {
		cells := row.Cells()
		for i, cell := range cells {
			cells[i] = adapters.Clean(cell, 0)
			p.widths[i] = max(p.widths[i], displayed(cells[i]))
		}
		lines = append(lines, cells)
	}
	inLine, below := p.layout()
	if !p.begun || !slices.Equal(inLine, p.inLine) {
		p.line(b, p.header, inLine)
	}
	p.inLine, p.begun = inLine, true
	for _, cells := range lines {
		p.line(b, cells, inLine)
		p.below(b, cells, below)
	}
}

const (
	gap    = "  "   // between columns
	indent = "    " // of what is written below a row
)

// layout returns the columns that fit into a line of the table, and the other ones. The
// first column is always in the line.
func (p *Printer[R]) layout() (inLine, below []int) {
	used := -len(gap)
	for i, name := range p.header {
		wide := len(gap) + p.widths[i]
		switch {
		case slices.Contains(p.hidden, name):
		case p.columns <= 0 || len(inLine) == 0 || used+wide <= p.columns:
			inLine = append(inLine, i)
			used += wide
		default:
			below = append(below, i)
		}
	}
	return inLine, below
}

// line writes the given columns of a row, aligned with those of other rows.
func (p *Printer[R]) line(b *strings.Builder, cells []string, columns []int) {
	var line strings.Builder
	for _, i := range columns {
		cell := cells[i]
		if cell == "" {
			cell = "-"
		}
		line.WriteString(cell + strings.Repeat(" ", max(0, p.widths[i]-displayed(cell))) + gap)
	}
	b.WriteString(strings.TrimRight(line.String(), " "))
	b.WriteByte('\n')
}

// below writes the given columns of a row with their names, except what is empty or a
// count of zero. Short ones share a line. The last column of the table, which is often a
// sentence, begins a line.
func (p *Printer[R]) below(b *strings.Builder, cells []string, columns []int) {
	room := max(1, p.columns-len(indent))
	var line string
	flush := func() {
		for _, part := range wrap(line, room) {
			b.WriteString(indent + part + "\n")
		}
		line = ""
	}
	for _, i := range columns {
		if cells[i] == "" || cells[i] == "0" {
			continue
		}
		text := strings.ToLower(p.header[i]) + ": " + cells[i]
		if line != "" && (i == len(p.header)-1 || displayed(line)+len(gap)+displayed(text) > room) {
			flush()
		}
		if line != "" {
			line += gap
		}
		line += text
	}
	flush()
}

// displayed returns how many columns s takes.
func displayed(s string) (columns int) {
	for _, r := range s {
		columns += columnsOf(r)
	}
	return columns
}

// columnsOf returns how many columns of a terminal a character takes.
func columnsOf(r rune) int {
	if unicode.Is(unicode.Mn, r) { // it is drawn over the one before
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	default:
		return 1
	}
}

// Cut shortens a line to a number of columns.
func Cut(line string, columns int) string {
	used := 0
	for i, r := range line {
		if used += columnsOf(r); used > columns {
			return line[:i]
		}
	}
	return line
}

// Wrap breaks a long line between words, so that it fits into the [Width] of w.
func Wrap(w any, line string) string {
	columns := Width(w)
	if columns <= 0 {
		return line
	}
	return strings.Join(wrap(line, columns), "\n")
}

// wrap breaks a line between words, or within a word that is longer than room.
func wrap(line string, room int) []string {
	var lines []string
	for displayed(line) > room {
		end, used := len(line), 0 // end is where the first character begins that has no room
		for i, r := range line {
			if used += columnsOf(r); used > room && i > 0 {
				end = i
				break
			}
		}
		if space := strings.LastIndexByte(line[:min(end+1, len(line))], ' '); space > 0 {
			end = space
		}
		lines = append(lines, strings.TrimRight(line[:end], " "))
		line = strings.TrimLeft(line[end:], " ")
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

// Object writes one value as JSON. As a table, text writes it.
func Object(w io.Writer, format Format, value any, text func(w io.Writer) error) error {
	if format == Table {
		return text(w)
	}
	if format == CSV {
		return errors.New("--output csv: this is no list of rows: use table, json or jsonl")
	}
	b, err := json.Marshal(value)
	if format == JSON {
		b, err = json.MarshalIndent(value, "", "  ")
	}
	if err != nil {
		return err
	}
	_, err = w.Write(append(escape(b), '\n'))
	return err
}
