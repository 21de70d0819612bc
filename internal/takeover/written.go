package takeover

import "cmp"

// written is an Image that remembers the first failure of its writes.
type written struct {
	Image
	failed error
}

func (w *written) WriteAt(b []byte, off int64) (int, error) {
	n, err := w.Image.WriteAt(b, off)
	w.failed = cmp.Or(w.failed, err)
	return n, err
}

func (w *written) Sync() error {
	err := w.Image.Sync()
	w.failed = cmp.Or(w.failed, err)
	return err
}

// stretchImage is an Image that takes many stretches at once (device.Direct).
type stretchImage interface {
	Image
	WriteStretches(n int, at func(int) (off int64, data [][]byte)) error
}

// writtenStretches is written for a stretchImage.
type writtenStretches struct {
	*written
	image stretchImage
}

func (w writtenStretches) WriteStretches(n int, at func(int) (off int64, data [][]byte)) error {
	err := w.image.WriteStretches(n, at)
	w.failed = cmp.Or(w.failed, err)
	return err
}

// watched returns an image that can do what the given one can, and the record of its
// failed writes.
func watched(image Image) (Image, *written) {
	w := &written{Image: image}
	if s, ok := image.(stretchImage); ok {
		return writtenStretches{w, s}, w
	}
	return w, w
}
