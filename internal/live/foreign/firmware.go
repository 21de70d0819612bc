package foreign

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

// node is what a command line says of a block device node: it is a file, or a format over another
// node.
type node struct {
	driver   string
	filename string
	file     string // name of the node below
}

// flash are the files of the machine's flash memory, as far as they exist.
func (m *Machine) flash() (files []os.FileInfo) {
	return m.files(flash(m.args))
}

// files are those of paths on its command line that exist.
func (m *Machine) files(paths []string) (files []os.FileInfo) {
	for _, path := range paths {
		if !filepath.IsAbs(path) {
			path = filepath.Join(m.proc("cwd"), path)
		}
		if st, err := os.Stat(path); err == nil {
			files = append(files, st)
		}
	}
	return files
}

// rawFiles are the files that a command line says are raw images, so that their content, which is the guest's, is not asked: -drive
// file=FILE,format=raw, a -blockdev of the driver raw, and one of a file that no other is over.
func rawFiles(args []string) (files []string) {
	nodes := make(map[string]node)
	over := make(map[string]bool)
	var names []string
	for i, a := range args[:max(0, len(args)-1)] {
		switch strings.Replace(a, "--", "-", 1) {
		case "-drive":
			if o := suboptions(args[i+1]); o["format"] == "raw" || o["driver"] == "raw" {
				files = append(files, o["file"]+o["file.filename"])
			}
		case "-blockdev":
			name, n := blockdev(args[i+1])
			nodes[name], over[n.file] = n, true
			names = append(names, name)
		}
	}
	for _, name := range names {
		n := nodes[name]
		if n.driver == "raw" && n.filename == "" {
			n.filename = nodes[n.file].filename
		}
		file := (n.driver == "file" || n.driver == "host_device") && !over[name]
		if n.filename != "" && (n.driver == "raw" || file) {
			files = append(files, n.filename)
		}
	}
	return files
}

// flash are the files of a machine's flash memory, in which firmware keeps its variables, as a
// command line names them: -pflash FILE, -drive if=pflash,file=FILE (qemu(1)), and -machine
// pflash1=NODE with -blockdev, which is libvirt's way.
func flash(args []string) (files []string) {
	nodes := make(map[string]node)
	var of []string
	for i, a := range args[:max(0, len(args)-1)] {
		value := args[i+1]
		o := suboptions(value)
		switch strings.Replace(a, "--", "-", 1) {
		case "-pflash":
			files = append(files, value)
		case "-drive":
			if nodes[o["id"]] = (node{filename: o["file"]}); o["if"] == "pflash" {
				files = append(files, o["file"])
			}
		case "-blockdev":
			name, n := blockdev(value)
			nodes[name] = n
		case "-machine", "-M":
			of = append(of, o["pflash0"], o["pflash1"])
		}
	}
	delete(nodes, "") // the nodes without a name
	for _, name := range of {
		for range len(nodes) {
			n := nodes[name]
			if name = n.file; n.filename != "" {
				files = append(files, n.filename)
			}
		}
	}
	return files
}

// suboptions parses KEY=VALUE,KEY=VALUE. A comma in a value is doubled (qemu(1)).
func suboptions(s string) map[string]string {
	const comma = "\x00" // no argument has a NUL in it
	o := make(map[string]string)
	for _, part := range strings.Split(strings.ReplaceAll(s, ",,", comma), ",") {
		key, value, _ := strings.Cut(part, "=")
		o[key] = strings.ReplaceAll(value, comma, ",")
	}
	return o
}

// blockdev returns the name and the node of a -blockdev: suboptions, or JSON, in which the node below
// is given by its name or in place.
func blockdev(s string) (string, node) {
	if !strings.HasPrefix(s, "{") {
		o := suboptions(s)
		return o["node-name"], node{driver: o["driver"], filename: o["filename"] + o["file.filename"], file: o["file"]}
	}
	var n struct {
		Name     string `json:"node-name"`
		Driver   string
		Filename string
		File     json.RawMessage
	}
	if json.Unmarshal([]byte(s), &n) != nil {
		return "", node{} // QEMU has not accepted it either
	}
	var below struct{ Filename string }
	var name string
	if json.Unmarshal(n.File, &below) != nil && json.Unmarshal(n.File, &name) != nil {
		return n.Name, node{driver: n.Driver, filename: n.Filename}
	}
	return n.Name, node{driver: n.Driver, filename: n.Filename + below.Filename, file: name}
}
