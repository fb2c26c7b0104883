package terminal

import "strings"

// Column is a column of a Table.
type Column struct {
	Title string
	// Right aligns the column to the right.
	Right bool
	// Least is the width down to which the column may be cut; 0 forbids it.
	Least int
}

// Cell is a piece of clean text in a style.
type Cell struct {
	Text  string
	Style Style
}

// Table is a table that fits the width of its Output.
type Table struct {
	Columns []Column
	rows    []row
}

type row struct {
	cells []Cell
	note  *Cell
}

// Add adds a row.
func (t *Table) Add(cells ...Cell) { t.rows = append(t.rows, row{cells: cells}) }

// Note adds a text below the last row, in as many lines as it needs.
func (t *Table) Note(c Cell) { t.rows = append(t.rows, row{note: &c}) }

const separator = " "

// Write writes the table. If it is too wide, columns that may be cut get narrower, the
// widest first.
func (t *Table) Write(o *Output) {
	widths := make([]int, len(t.Columns))
	for i, c := range t.Columns {
		widths[i] = Columns(c.Title)
		for _, r := range t.rows {
			if i < len(r.cells) {
				widths[i] = max(widths[i], Columns(r.cells[i].Text))
			}
		}
	}
	for total(widths) > o.Width {
		widest := -1
		for i, c := range t.Columns {
			if c.Least > 0 && widths[i] > c.Least && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	titles := make([]Cell, len(t.Columns))
	for i, c := range t.Columns {
		titles[i] = Cell{c.Title, Strong}
	}
	t.line(o, widths, titles)
	for _, r := range t.rows {
		if r.note == nil {
			t.line(o, widths, r.cells)
			continue
		}
		for _, line := range Wrap(r.note.Text, o.Width-4) {
			o.Printf("    %s\n", o.Paint(r.note.Style, line))
		}
	}
}

func total(widths []int) int {
	sum := len(separator) * (len(widths) - 1)
	for _, w := range widths {
		sum += w
	}
	return sum
}

func (t *Table) line(o *Output, widths []int, cells []Cell) {
	var b strings.Builder
	blank := 0
	for i, c := range cells {
		text := Fit(c.Text, widths[i])
		fill := widths[i] - Columns(text)
		if t.Columns[i].Right {
			blank += fill
			fill = 0
		}
		if text != "" {
			b.WriteString(strings.Repeat(" ", blank))
			b.WriteString(o.Paint(c.Style, text))
			blank = 0
		}
		blank += fill + len(separator)
	}
	o.Printf("%s\n", b.String())
}
