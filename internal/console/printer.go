package console

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

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
	widths  []int
	columns int // of the terminal; 0 when there is none
	begun   bool
}

// Rows writes all rows of a table or a list.
func Rows[R Row](w io.Writer, format Format, rows ...R) error {
	p := NewPrinter[R](w, format)
	return errors.Join(p.Print(rows...), p.Close())
}

// NewPrinter returns a printer for rows that come one after the other.
func NewPrinter[R Row](w io.Writer, format Format) *Printer[R] {
	var row R
	p := &Printer[R]{w: w, format: format, header: row.Header(), columns: Width(w)}
	for _, h := range p.header {
		p.widths = append(p.widths, utf8.RuneCountInString(h))
	}
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
		lines, p.begun = append(lines, p.header), true
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

// line writes one line, cut to the width of the terminal.
func (p *Printer[R]) line(b *strings.Builder, cells []string) {
	var line strings.Builder
	for i, cell := range cells {
		if cell == "" {
			cell = "-"
		}
		line.WriteString(cell)
		if i < len(cells)-1 {
			line.WriteString(strings.Repeat(" ", p.widths[i]-min(p.widths[i], utf8.RuneCountInString(cell))) + "  ")
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

// Object writes one value as JSON. As a table, text writes it.
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
