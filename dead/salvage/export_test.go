package salvage

// Torn returns how many blocks of a disk without a journal may differ from what memory has.
func (p *Plan) Torn() int { return (&recovered{p: p}).torn() }
