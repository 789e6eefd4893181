"""How exact SN is on hard inputs: the inputs, the judge, the page."""
