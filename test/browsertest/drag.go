package browsertest

// Drag presses the mouse at one point of an element, moves it to another and lets go; x and y go from 0 to 1 across it.
func (p *Page) Drag(element string, x0, y0, x1, y1 float64) {
	p.b.t.Helper()
	var box struct{ X, Y, W, H float64 }
	p.Eval(`(() => { const e = `+element+`; e.scrollIntoView({block: "center", behavior: "instant"}); const r = e.getBoundingClientRect();
		return {X: r.x, Y: r.y, W: r.width, H: r.height}; })()`, &box)
	at := func(x, y float64) (float64, float64) { return box.X + x*box.W, box.Y + y*box.H }
	mouse := func(what string, x, y float64, buttons int) {
		p.must("Input.dispatchMouseEvent", map[string]any{"type": what, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1}, nil)
	}
	ax, ay := at(x0, y0)
	bx, by := at(x1, y1)
	mouse("mouseMoved", ax, ay, 0)
	mouse("mousePressed", ax, ay, 1)
	for i := 1; i <= 4; i++ {
		f := float64(i) / 4
		mouse("mouseMoved", ax+(bx-ax)*f, ay+(by-ay)*f, 1)
	}
	mouse("mouseReleased", bx, by, 0)
}
