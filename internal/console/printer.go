package console

import (
	"encoding/json"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
)

// Row is one line of a table; its JSON form is its fields.
type Row interface {
	// Cells returns the columns as text, as many as the table has.
	Cells() []string
}

// Printer writes rows as they come. Close ends the output.
type Printer[R Row] struct {
	w       io.Writer
	format  Format
	header  []string
	widths  []int
	columns int // of the terminal; 0 when there is none
	begun   bool
}

// NewPrinter returns a printer of rows under header.
func NewPrinter[R Row](w io.Writer, format Format, header ...string) *Printer[R] {
	p := &Printer[R]{w: w, format: format, header: header, columns: width(w)}
	for _, h := range header {
		p.widths = append(p.widths, utf8.RuneCountInString(h))
	}
	return p
}

// Print writes rows. In a table they are aligned with each other and with those
// printed before.
func (p *Printer[R]) Print(rows ...R) error {
	if len(rows) == 0 {
		return nil
	}
	var b strings.Builder
	var err error
	if p.format == Table {
		p.table(&b, rows)
	} else {
		err = p.json(&b, rows)
	}
	if err != nil {
		return err
	}
	p.begun = true
	_, err = io.WriteString(p.w, b.String())
	return err
}

// Close writes what is still missing: the header of an empty table, the
// brackets of a JSON array.
func (p *Printer[R]) Close() error {
	var b strings.Builder
	switch {
	case p.format == JSON && p.begun:
		b.WriteString("\n]\n")
	case p.format == JSON:
		b.WriteString("[]\n")
	case p.format == Table && !p.begun:
		p.line(&b, p.header)
	}
	_, err := io.WriteString(p.w, b.String())
	return err
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
	lines := make([][]string, 0, len(rows)+1)
	if !p.begun {
		lines = append(lines, p.header)
	}
	for _, row := range rows {
		cells := row.Cells()
		for i, cell := range cells {
			cells[i] = adapters.Clean(cell, 0)
			p.widths[i] = max(p.widths[i], utf8.RuneCountInString(cells[i]))
		}
		lines = append(lines, cells)
	}
	for _, line := range lines {
		p.line(b, line)
	}
}

const gap = "  "

// line writes one line. On a terminal it is cut rather than wrapped.
func (p *Printer[R]) line(b *strings.Builder, cells []string) {
	var line strings.Builder
	for i, cell := range cells {
		if cell == "" {
			cell = "-"
		}
		line.WriteString(cell)
		if i < len(cells)-1 {
			line.WriteString(strings.Repeat(" ", p.widths[i]-min(p.widths[i], utf8.RuneCountInString(cell))) + gap)
		}
	}
	b.WriteString(cut(strings.TrimRight(line.String(), " "), p.columns))
	b.WriteByte('\n')
}

func cut(s string, columns int) string {
	if columns <= 0 || utf8.RuneCountInString(s) <= columns {
		return s
	}
	return string([]rune(s)[:columns-1]) + "…"
}

// Object writes one value: as JSON in the JSON formats, else as text puts it.
func Object(w io.Writer, format Format, value any, text func(w io.Writer) error) error {
	if format == Table {
		return text(w)
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
