package main

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// fill FILE DIR FROM TO takes all room that is left in the file system of FILE at
// event number FROM, and gives it back at event number TO, if that is not 0. An
// event is that something was made or moved in DIR or in a directory below. FROM 0
// is at once. When it gets SIGTERM it removes the file and prints the number of
// events.
func fill(args []string) error {
	from, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	to, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	defer os.Remove(args[0])
	events, err := watchTree(args[1])
	if err != nil {
		return err
	}
	if from == 0 {
		takeRoom(f)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	fmt.Println("ready")
	for n := 0; ; {
		select {
		case <-events:
			switch n++; n {
			case from:
				takeRoom(f)
			case to:
				f.Truncate(0)
			}
		case <-end:
			fmt.Println(n)
			return nil
		}
	}
}

// takeRoom makes a file as large as there is room.
func takeRoom(f *os.File) {
	size := int64(0)
	for step := int64(64 << 20); step >= 4096; {
		if unix.Fallocate(int(f.Fd()), 0, size, step) == nil {
			size += step
		} else {
			step /= 2
		}
	}
}

// watchTree returns a channel that gets a value whenever something is made in the
// directory or below.
func watchTree(dir string) (<-chan struct{}, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("inotify_init: %w", err)
	}
	watched := map[int32]string{}
	watch := func(dir string) {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				if wd, err := unix.InotifyAddWatch(fd, path, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err == nil {
					watched[int32(wd)] = path
				}
			}
			return nil
		})
	}
	watch(dir)
	events := make(chan struct{}, 10000)
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, b)
			if err != nil {
				close(events)
				return
			}
			for at := 0; at+unix.SizeofInotifyEvent <= n; {
				// struct inotify_event in inotify(7).
				wd := int32(binary.NativeEndian.Uint32(b[at:]))
				mask, length := binary.NativeEndian.Uint32(b[at+4:]), int(binary.NativeEndian.Uint32(b[at+12:]))
				name := unix.ByteSliceToString(b[at+unix.SizeofInotifyEvent : at+unix.SizeofInotifyEvent+length])
				at += unix.SizeofInotifyEvent + length
				if mask&unix.IN_IGNORED != 0 {
					continue
				}
				if mask&unix.IN_ISDIR != 0 {
					watch(filepath.Join(watched[wd], name))
				}
				events <- struct{}{}
			}
		}
	}()
	return events, nil
}

// hoard FILE WHAT REPORT takes a descriptor of that file from a process of the
// same user and uses it to take room, of WHAT: bytes of the file, or xattrs, its
// extended attributes. It writes into REPORT what it got, and keeps it.
func hoard(args []string) error {
	fd, err := stealDescriptor(args[0])
	if err != nil {
		return err
	}
	got := 0
	switch args[1] {
	case "bytes":
		b := make([]byte, 64<<10)
		for size := int64(0); size < 1<<30; {
			n, err := unix.Pwrite(fd, b, size)
			if err != nil {
				if len(b) == 1 {
					break
				}
				b = b[:len(b)/2]
				continue
			}
			size += int64(n)
			got = int(size)
		}
	case "xattrs":
		for b := make([]byte, 4096); got < 200_000; {
			if err := unix.Fsetxattr(fd, fmt.Sprintf("user.%d", got), b, 0); err == nil {
				got++
			} else if len(b) > 0 {
				b = b[:len(b)/2]
			} else {
				break
			}
		}
	}
	if err := os.WriteFile(args[2], fmt.Appendf(nil, "%d %s\n", got, args[1]), 0o644); err != nil {
		return err
	}
	idle()
	return nil
}

// stealDescriptor returns a copy of some process' descriptor of the file.
func stealDescriptor(path string) (int, error) {
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return -1, err
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != path {
			continue
		}
		var pid, number int
		if _, err := fmt.Sscanf(link, "/proc/%d/fd/%d", &pid, &number); err != nil || pid == os.Getpid() {
			continue
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if fd, err := unix.PidfdGetfd(pidfd, number, 0); err == nil {
			return fd, nil
		}
	}
	return -1, fmt.Errorf("descriptor of %s: %w", path, os.ErrNotExist)
}
