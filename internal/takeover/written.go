package takeover

import "cmp"

// written remembers that a write to an image failed.
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

// writtenStretches is written of a stretchImage.
type writtenStretches struct {
	*written
	image stretchImage
}

func (w writtenStretches) WriteStretches(n int, at func(int) (off int64, data [][]byte)) error {
	err := w.image.WriteStretches(n, at)
	w.failed = cmp.Or(w.failed, err)
	return err
}

// watched is an image that can do what the given one can, and who remembers what failed.
func watched(image Image) (Image, *written) {
	w := &written{Image: image}
	if s, ok := image.(stretchImage); ok {
		return writtenStretches{w, s}, w
	}
	return w, w
}
