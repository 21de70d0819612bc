package bare

import (
	"errors"
	"fmt"
	"os"
	"time"

	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/internal/live/metal"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// CheckFileSystems refuses a role with a disk whose file system, as it is mounted on this machine, a takeover cannot bring
// over. A disk that is not mounted passes.
func CheckFileSystems(role wire.Config) error {
	for _, d := range role.Disks {
		path, err := metal.DeviceOf(os.DirFS("/"), d.Mount)
		if errors.Is(err, metal.ErrNotMounted) {
			continue
		}
		if err == nil {
			err = fitsNow(path)
		}
		if err != nil {
			return fmt.Errorf("disk %s, mounted on %s: %w", d.Name, d.Mount, err)
		}
	}
	return nil
}

// fitsNow is morgue.Fits for a device that is mounted. The kernel may be changing the superblock while it is read, which
// does not fit its checksum then.
func fitsNow(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for tries := 1; ; tries++ {
		err := morgue.Fits(f)
		if tries == 5 || !errors.Is(err, ext4.ErrChecksum) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
