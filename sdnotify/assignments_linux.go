package sdnotify

import (
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// This file has the well-known assignments of sd_notify(3), in the order of that page.
// BARRIER=1 is the method Client.Barrier. A number in parentheses is the first version
// of systemd that knows the assignment, if that is later than 233. Older versions
// ignore it.

// Ready says that the service has started, or has reloaded its configuration.
func Ready() Assignment { return Assignment{"READY", "1"} }

// Reloading says that the service begins to reload its configuration now: RELOADING=1
// and MONOTONIC_USEC=. Type=notify-reload needs both. Ready must follow.
func Reloading() Message { return Message{{"RELOADING", "1"}, MonotonicNow()} }

// Stopping says that the service begins to shut down.
func Stopping() Assignment { return Assignment{"STOPPING", "1"} }

// MonotonicNow gives the time of the message, CLOCK_MONOTONIC in microseconds
// (253).
func MonotonicNow() Assignment {
	var now unix.Timespec
	// Cannot fail: the clock always exists.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return Assignment{"MONOTONIC_USEC", strconv.FormatInt(now.Nano()/1000, 10)}
}

// Status describes the state of the service for people, in one line of UTF-8.
// systemctl status shows the line.
func Status(text string) Assignment { return Assignment{"STATUS", text} }

// NotifyAccess sets which processes may send messages from now on: none, main, exec or
// all, as NotifyAccess= in systemd.service(5) (254).
func NotifyAccess(access string) Assignment { return Assignment{"NOTIFYACCESS", access} }

// Errno says why the service failed, as an error number of errno(3).
func Errno(errno syscall.Errno) Assignment {
	return Assignment{"ERRNO", strconv.FormatUint(uint64(errno), 10)}
}

// BusError says why the service failed, as the name of a D-Bus error.
func BusError(name string) Assignment { return Assignment{"BUSERROR", name} }

// VarlinkError says why the service failed, as the name of a Varlink error
// (257).
func VarlinkError(name string) Assignment { return Assignment{"VARLINKERROR", name} }

// ExitStatus gives the exit status of the sender. Managers send it to their own
// manager (254).
func ExitStatus(status int) Assignment { return Assignment{"EXIT_STATUS", strconv.Itoa(status)} }

// MainPID makes a process the main process of the service: MAINPID= with its PID, and
// MAINPIDFDID= with the inode number of its pidfd (257), so that the manager does not
// take another process with a reused PID. MAINPIDFDID= is left out on kernels whose
// pidfds have no inode numbers of their own: those before 6.9, and 32-bit ones.
//
// pidfd must refer to the process pid. MainPID fails with unix.EBADF if it is not a
// pidfd, and with unix.ESRCH if the process has ended.
func MainPID(pidfd, pid int) (Message, error) {
	// Signal 0 sends nothing, kill(2). EPERM shows that the process exists.
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("main PID %d: pidfd %d: %w", pid, pidfd, err)
	}
	m := Message{{"MAINPID", strconv.Itoa(pid)}}

	var fs unix.Statfs_t
	if err := unix.Fstatfs(pidfd, &fs); err != nil {
		return nil, fmt.Errorf("main PID %d: fstatfs of pidfd %d: %w", pid, pidfd, err)
	}
	if fs.Type != unix.PID_FS_MAGIC || strconv.IntSize < 64 {
		return m, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(pidfd, &st); err != nil {
		return nil, fmt.Errorf("main PID %d: fstat of pidfd %d: %w", pid, pidfd, err)
	}
	return append(m, Assignment{"MAINPIDFDID", strconv.FormatUint(st.Ino, 10)}), nil
}

// MainPIDFD makes the process of a pidfd the main process of the service (257). Send
// it by SendFiles, with the pidfd as the only descriptor.
func MainPIDFD() Assignment { return Assignment{"MAINPIDFD", "1"} }

// Watchdog says that the service is alive; see WatchdogSec= in
// systemd.service(5).
func Watchdog() Assignment { return Assignment{"WATCHDOG", "1"} }

// WatchdogTrigger makes the manager act as if the service had not sent Watchdog in time
// (243).
func WatchdogTrigger() Assignment { return Assignment{"WATCHDOG", "trigger"} }

// WatchdogTimeout sets the longest time between two Watchdogs, in whole microseconds.
func WatchdogTimeout(d time.Duration) Assignment { return Assignment{"WATCHDOG_USEC", usec(d)} }

// ExtendTimeout asks for more time to start, run or stop: d from now, in whole
// microseconds. Within this time another message must follow (236).
func ExtendTimeout(d time.Duration) Assignment { return Assignment{"EXTEND_TIMEOUT_USEC", usec(d)} }

// RestartReset resets the restart counter of the service (258).
func RestartReset() Assignment { return Assignment{"RESTART_RESET", "1"} }

// FDStore asks the manager to keep the descriptors of the same message, see SendFiles,
// and to pass them to the service when it starts again: FDSTORE=1 and FDNAME=. The
// name is printable ASCII without a colon, of at most 255 bytes. With an empty name
// the manager chooses "stored". See FileDescriptorStoreMax= in systemd.service(5).
func FDStore(name string) Message {
	m := Message{{"FDSTORE", "1"}}
	if name != "" {
		m = append(m, Assignment{"FDNAME", name})
	}
	return m
}

// FDStoreRemove asks the manager to close the descriptors that it keeps under a
// name: FDSTOREREMOVE=1 and FDNAME= (236).
func FDStoreRemove(name string) Message {
	return Message{{"FDSTOREREMOVE", "1"}, {"FDNAME", name}}
}

// FDNoPoll, together with FDStore, asks the manager to keep the descriptors
// even after an EPOLLHUP or EPOLLERR: FDPOLL=0 (246).
func FDNoPoll() Assignment { return Assignment{"FDPOLL", "0"} }

func usec(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }
