package ram

import "sync"

// cache keeps decoded blocks, up to a number of bytes. It is safe for
// concurrent use. What it returns is never written to again and stays valid for
// as long as anyone refers to it.
//
// Each shard has two generations: blocks enter the young one, and move there when
// they are asked for. When the young one is full, it becomes the old one, and the
// previous old one is forgotten.
type cache struct {
	shards [cacheShards]cacheShard
}

const cacheShards = 16

type cacheShard struct {
	mu         sync.Mutex
	young, old map[int64][]byte
	size       int // bytes in young
	limit      int // for each generation
}

// newCache makes a cache of at most limit bytes.
func newCache(limit int) *cache {
	c := &cache{}
	for i := range c.shards {
		c.shards[i].limit = limit / cacheShards / 2
	}
	return c
}

func (c *cache) shard(key int64) *cacheShard {
	// Multiplicative hashing: neighbours go to different shards.
	return &c.shards[uint64(key)*0x9e3779b97f4a7c15>>60%cacheShards]
}

func (c *cache) get(key int64) ([]byte, bool) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.young[key]; ok {
		return b, true
	}
	b, ok := s.old[key]
	if ok {
		s.insert(key, b)
	}
	return b, ok
}

func (c *cache) put(key int64, b []byte) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.young[key]; !ok {
		s.insert(key, b)
	}
}

func (s *cacheShard) insert(key int64, b []byte) {
	if len(b) > s.limit {
		return
	}
	if s.young == nil || s.size+len(b) > s.limit {
		s.old, s.young, s.size = s.young, make(map[int64][]byte), 0
	}
	s.young[key] = b
	s.size += len(b)
}
