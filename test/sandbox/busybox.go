package sandbox

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"slices"
)

// BusyboxTar is a tar archive in every machine, for podman-import(1): the root
// file system of an image that needs no registry. It holds a static busybox
// with all its applets.
//
//	podman import /usr/share/oci-mainpid-sandbox/busybox.tar localhost/busybox
const BusyboxTar = "/usr/share/oci-mainpid-sandbox/busybox.tar"

// writeBusyboxTar writes that archive: the program at path, links to it by the
// names of its applets, and the few files and directories that programs expect.
func writeBusyboxTar(w io.Writer, path string, applets []string) error {
	program, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("busybox for the image: %w", err)
	}
	t := tar.NewWriter(w)
	dir := func(name string, mode int64) error {
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode})
	}
	file := func(name string, mode int64, data []byte) error {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err := t.Write(data)
		return err
	}
	link := func(name, target string) error {
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777})
	}

	for _, d := range []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "usr", "var"} {
		err = firstError(err, dir(d, 0o755))
	}
	err = firstError(err, dir("tmp", 0o1777))
	err = firstError(err, link("sbin", "bin"))
	err = firstError(err, link("usr/bin", "../bin"))
	err = firstError(err, link("usr/sbin", "../bin"))
	err = firstError(err, link("var/run", "../run"))
	err = firstError(err, file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")))
	err = firstError(err, file("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n")))
	err = firstError(err, file("bin/busybox", 0o755, program))
	slices.Sort(applets)
	for _, a := range slices.Compact(applets) {
		if a != "busybox" {
			err = firstError(err, link("bin/"+a, "busybox"))
		}
	}
	if err = firstError(err, t.Close()); err != nil {
		return fmt.Errorf("write the busybox image: %w", err)
	}
	return nil
}

// firstError returns a unless it is nil, else b.
func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
